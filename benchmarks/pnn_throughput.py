"""Measure how fast the published PNN trains on a GPU, without Ray.

Figures are positions a second, the share of the GPU's speed, and the time for the published 1.92e9 positions. Without a
GPU nothing is written.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.reference import Figure, figure, write
from raysweep.contracts import Facts
from raysweep.job import registry
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.accounting import TRAINING_TO_FORWARD, flops_per_token
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.training.loop import Schedule, Training

SIZE, VOCABULARY, SEQ_LEN, BATCH, DROPOUT = "pnn-base", 30522, 128, 1152, 0.1
STEPS, RUNS = 20, 6
PUBLISHED_POSITIONS = 1.92e9
"""10^6 windows of 128, 15 epochs (pnn.md, section 2); 269.5 minutes on an A100."""
PARTS = (1, 3, 6, 12, 24)
"""Accumulation steps to try, fewest first, until a batch fits into memory."""
MASK = 4


def main() -> None:
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured, nothing written", file=sys.stderr)
        return
    device = torch.device("cuda")
    peak = matrix_product_speed(device)
    figures = [one for compile in (False, True) for one in measured(device, SIZE, BATCH, compile, peak)]
    write("pnn_throughput", figures, torch.cuda.get_device_name())


def measured(device: torch.device, size: str, batch_size: int, compile: bool, peak: float) -> list[Figure]:
    """Return figures over runs of STEPS steps each.

    Args:
        peak: floating-point operations a second that the device does at best.
    """
    training, seconds = first_that_fits(device, size, batch_size, compile)
    rates = [STEPS * batch_size * SEQ_LEN / each for each in seconds]
    whole, predicted = HeadMap.full(*training.state.model.shape), training.task.predicted
    flops = TRAINING_TO_FORWARD * flops_per_token(
        training.state.model, whole, SEQ_LEN, predicted=predicted, training=True
    )
    parts, how = training.training["accumulation"], "compiled" if compile else "as it stands"
    setting = f"{size}, bf16, dropout {DROPOUT}, {batch_size} windows of {SEQ_LEN} a step in {parts} passes"
    return [
        figure(f"throughput, {how}", rates, asked="(see the projected time)", unit="positions/s", baseline=setting),
        figure(
            f"model FLOPs utilisation, {how}", [rate * flops / peak for rate in rates],
            asked="(none)", unit="x", baseline=f"a bf16 matrix product on the same device, {peak:.3g} FLOP/s",
        ),
        figure(
            f"projected time for 1.92e9 positions, {how}", [PUBLISHED_POSITIONS / rate / 60 for rate in rates],
            asked="<= 25", unit="minutes", baseline="269.5 minutes as published, on an A100",
        ),
    ]  # fmt: skip


def first_that_fits(device: torch.device, size: str, batch_size: int, compile: bool) -> tuple[Training, list[float]]:
    """Train with as few accumulation steps as memory allows; return the seconds of each run too."""
    for parts in PARTS:
        training = training_of(device, size, batch_size, parts, compile)
        try:
            return training, seconds_of(training, device)
        except torch.OutOfMemoryError:
            del training
            torch.cuda.empty_cache()
    raise SystemExit(f"{batch_size} windows do not fit into the GPU's memory in {PARTS[-1]} parts.")


def seconds_of(training: Training, device: torch.device) -> list[float]:
    """Train; return the seconds of each run of STEPS steps but the first, which includes the set-up."""
    marks: list[float] = []

    def mark(step: int) -> None:
        if step % STEPS == 0:
            marks.append(now(device))

    training.on_step = mark
    training.run()
    return [after - before for before, after in zip(marks[1:], marks[2:], strict=False)]


def training_of(device: torch.device, size: str, batch_size: int, parts: int, compile: bool) -> Training:
    facts = Facts(vocab_size=VOCABULARY, mask_token=MASK, special_tokens=tuple(range(MASK + 1)), masking="mask")
    spec = ModelSpec.model_validate({"name": size, "dropout": DROPOUT})
    built, family = build_network(spec, facts, seq_len=SEQ_LEN, seed=0)
    built.to(device)
    model = PlasticModel(built, family.sites(built))
    optimizer = SliceAdamW(dict(built.named_parameters()), 0.01, built.undecayed())
    windows = np.random.default_rng(0).integers(MASK + 1, VOCABULARY, (8 * batch_size, SEQ_LEN)).astype(np.uint16)
    settings: dict[str, Any] = {"accumulation": parts, "clip_norm": 1.0, "precision": "bf16", "compile": compile}
    return Training(
        state=TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape)),
        schedule=Schedule(steps=(RUNS + 1) * STEPS, lr=3e-4, warmup_fraction=0.04, min_lr_fraction=1 / 30),
        examples=windows,
        task=registry.load("tasks", "masked_lm")(facts=facts),
        order=BatchOrder(num_windows=len(windows), batch_size=batch_size, seed=0),
        training=settings,
        runtime=Runtime(device=device),
    )


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_product_speed(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """Return floating-point operations a second, the best of some products."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(repeats):
        started = now(device)
        left @ right
        times.append(now(device) - started)
    return 2 * size**3 / min(times)


if __name__ == "__main__":
    main()
