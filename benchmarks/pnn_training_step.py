"""Compare a training step of the published PNN with logits everywhere, with BERT's twelve layers, and over ranks.

The PNN computes logits at masked tokens alone. Steps are run by turns on one batch; gradients are those of one rank and
of two.

Dropout is off, so that gradients can be compared. A batch of 16 windows suits two cores: in a smaller one the
optimizer, whose cost is that of the vocabulary, weighs more.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from benchmarks.reference import Figure, figure, write
from raysweep.contracts import Batch, Examples, Facts, Task
from raysweep.job import registry
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.tasks.masked_lm import Task as MaskedLm
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.training.loop import Schedule, Training

SIZE, VOCABULARY, SEQ_LEN, BATCH, PAIRS, RANKS = "pnn-base", 30522, 128, 16, 5, 2
BERT: dict[str, Any] = {"trunk": "layers", "num_steps": 12, "intermediate_size": 3072}
SETTINGS: dict[str, Any] = {"accumulation": 1, "clip_norm": 1.0, "precision": "fp32", "compile": False}
MASK, UNKNOWN = 4, 1


def main() -> None:
    write("pnn_training_step", [*steps(SIZE, VOCABULARY, PAIRS), ranks(SIZE, VOCABULARY)])


def steps(size: str, vocabulary: int, pairs: int) -> list[Figure]:
    """Measure steps by turns, so that other load of the machine slows all of them alike."""
    task = masked_lm(vocabulary)
    pnn = training_of(ModelSpec(name=size), task, vocabulary)
    bert = training_of(ModelSpec(name=size, **BERT), task, vocabulary)
    everywhere = replace(pnn, task=Everywhere(facts=task.facts))
    apart = difference(gradients(pnn), gradients(everywhere))
    seconds = [[timed(each) for each in (pnn, everywhere, bert)] for _ in range(pairs + 1)][1:]
    return [
        figure(
            "step with logits everywhere / step with logits at hidden tokens",
            [full / few for few, full, _ in seconds],
            asked=">= 2", unit="x", baseline="the same network, optimizer and batch, logits at all positions",
        ),
        figure(
            "largest difference of a gradient between the two",
            [apart], asked="<= 1e-5", unit="(absolute)", baseline="logits at all positions",
        ),
        figure(
            "step of PNN / step of BERT's twelve layers",
            [few / layers for few, _, layers in seconds],
            asked="<= 0.55", unit="x",
            baseline="12 unshared layers, feed-forward 3072, both with logits at hidden tokens",
        ),
    ]  # fmt: skip


def ranks(size: str, vocabulary: int) -> Figure:
    """Compare the gradients of one step on one rank and on two, with accumulation and unequally many labels."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, args=(folder, size, vocabulary), nprocs=RANKS)
        together = torch.load(Path(folder) / "gradients.pt")
    apart = difference(gradients(accumulating(size, vocabulary)), together)
    return figure(
        "largest difference of a gradient between one rank and two",
        [apart], asked="<= 1e-5", unit="(absolute)", baseline="one rank, the same global batch, accumulation 2",
    )  # fmt: skip


def rank_main(rank: int, folder: str, size: str, vocabulary: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found = gradients(accumulating(size, vocabulary))
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    distributed.barrier()
    distributed.destroy_process_group()


class Everywhere(MaskedLm):
    """The task with logits at all positions: the same labels, without their positions."""

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        return replace(super().batch(examples, seeds), labelled=None)


def masked_lm(vocabulary: int) -> Task:
    facts = Facts(vocab_size=vocabulary, mask_token=MASK, special_tokens=tuple(range(MASK + 1)), masking="mask")
    task: Task = registry.load("tasks", "masked_lm")(facts=facts)
    return task


def windows(vocabulary: int) -> Examples:
    """Return random tokens with another share of unknown ones in each window, for unequal numbers of labels."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(MASK + 1, vocabulary, (64, SEQ_LEN))
    unknown = generator.random(tokens.shape) < generator.uniform(0, 0.2, (64, 1))
    return np.where(unknown, UNKNOWN, tokens).astype(np.uint16)


def training_of(spec: ModelSpec, task: Task, vocabulary: int, accumulation: int = 1) -> Training:
    built, family = build_network(spec, task.facts, seq_len=SEQ_LEN, seed=0)
    model = PlasticModel(built, family.sites(built))
    optimizer = SliceAdamW(dict(built.named_parameters()), 0.01, built.undecayed())
    return Training(
        state=TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape)),
        schedule=Schedule(steps=1, lr=1e-5, warmup_fraction=0.0),
        examples=windows(vocabulary),
        task=task,
        order=BatchOrder(num_windows=64, batch_size=BATCH * accumulation, seed=0),
        training=SETTINGS | {"accumulation": accumulation},
        runtime=Runtime(device=torch.device("cpu")),
    )


def accumulating(size: str, vocabulary: int) -> Training:
    return training_of(ModelSpec(name=size), masked_lm(vocabulary), vocabulary, accumulation=2)


def gradients(training: Training) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step."""
    network = training.state.model.network
    training._accumulate(training.runtime.wrap(training.state.model), 0)
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    training.state.optimizer.zero_grad()
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((gradient - other[name]).abs().max()) for name, gradient in one.items())


def timed(training: Training) -> float:
    """Take one optimizer step; return its seconds."""
    started = time.perf_counter()
    training.run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
