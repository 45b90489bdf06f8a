"""Compare our training loop with a hand-written torch DDP loop: same model, batch and optimizer, two gloo ranks."""

from __future__ import annotations

import math
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.reference import figure, write
from raysweep.contracts import Facts
from raysweep.job import registry
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.training.loop import Schedule, Training

WORLD, STEPS, PAIRS, BATCH, SEQ_LEN, VOCABULARY, LR = 2, 20, 12, 16, 128, 1024, 1e-3
SETTINGS: dict[str, Any] = {
    "accumulation": 1, "clip_norm": 1.0, "weight_decay": 0.01, "precision": "fp32", "compile": False,
}  # fmt: skip


def main() -> None:
    receiving, sending = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, args=(folder, sending), nprocs=WORLD)
    dense, plastic = receiving.recv()
    baseline = "hand-written torch DDP loop, transformers model, fused AdamW, clipping, cosine schedule"
    write(
        "training_step",
        [
            figure("time per step, all heads present", dense, asked="<= 1.03", unit="x", baseline=baseline),
            figure(
                "time per step, learning with 30% of heads absent and 10% new",
                plastic, asked="(none: gates and slices at work)", unit="x", baseline=baseline,
            ),
        ],
    )  # fmt: skip


def rank_main(rank: int, folder: str, sending: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{Path(folder) / 'join'}", rank=rank, world_size=WORLD)
    windows = np.random.default_rng(0).integers(0, VOCABULARY, (512, SEQ_LEN)).astype(np.uint16)
    dense, plastic, by_hand = Ours(windows), Ours(windows), HandWritten(windows)
    plastic.make_plastic()
    for loop in (dense, plastic, by_hand):
        loop.run()
    ratios: tuple[list[float], list[float]] = ([], [])
    for _ in range(PAIRS):
        plain = timed(by_hand)
        ratios[0].append(timed(dense) / plain)
        ratios[1].append(timed(plastic) / plain)
    if rank == 0:
        sending.send(ratios)
    distributed.destroy_process_group()


def timed(loop: Any) -> float:
    distributed.barrier()
    started = time.perf_counter()
    loop.run()
    return time.perf_counter() - started


def network() -> tuple[Any, Any]:
    return build_network(ModelSpec(name="gpt2-nano"), Facts(vocab_size=VOCABULARY), seq_len=SEQ_LEN, seed=0)


class Ours:
    def __init__(self, windows: np.ndarray) -> None:
        built, family = network()
        model = PlasticModel(built, family.sites(built))
        self.state = TrialState(
            model=model,
            optimizer=SliceAdamW(dict(built.named_parameters()), SETTINGS["weight_decay"]),
            head_map=HeadMap.full(*model.shape),
        )
        self.windows = windows

    def make_plastic(self) -> None:
        layers, heads = self.state.model.shape
        slots = [(layer, head) for layer in range(layers) for head in range(heads)]
        self.state.remove_heads([slot for index, slot in enumerate(slots) if index % 10 in (0, 3, 6, 9)], None)
        self.state.add_heads(slots[9::10], cycle=1)
        self.state.initialise_new_heads(slots[9::10], registry.build("init", "zero_output"), "benchmark")
        self.state.refresh()

    def run(self) -> None:
        schedule = Schedule(
            steps=STEPS, lr=LR, warmup_fraction=0.1, new_head_lr_multiplier=3.0, gate_warmup_steps=STEPS, gate_start=0.1
        )
        order = BatchOrder(num_windows=len(self.windows), batch_size=BATCH, seed=0)
        runtime = Runtime(device=torch.device("cpu"))
        Training(
            state=self.state,
            schedule=schedule,
            examples=self.windows,
            task=registry.build("tasks", "causal_lm"),
            order=order,
            training=SETTINGS,
            runtime=runtime,
        ).run()


class HandWritten:
    """A training loop written without raysweep."""

    def __init__(self, windows: np.ndarray) -> None:
        self.model = network()[0]
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": SETTINGS["weight_decay"]},
                {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=LR,
            fused=True,
        )
        self.windows = windows

    def run(self) -> None:
        model = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        model.train()
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / 2) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        )
        rank = distributed.get_rank()
        order = np.random.default_rng(0).permutation(len(self.windows))
        for step in range(STEPS):
            mine = order[step * BATCH + rank : (step + 1) * BATCH : WORLD]
            tokens = torch.from_numpy(self.windows[mine].astype(np.int64))
            logits = model(input_ids=tokens, use_cache=False).logits
            targets = functional.pad(tokens[:, 1:], (0, 1), value=-100)
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), SETTINGS["clip_norm"])
            self.optimizer.step()
            scheduler.step()
            self.optimizer.zero_grad()


if __name__ == "__main__":
    main()
