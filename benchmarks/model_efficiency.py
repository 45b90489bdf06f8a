"""Measure the share of a core's matrix-product speed that a training step of a from-scratch model reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.reference import Figure, figure, write
from raysweep.contracts import Facts
from raysweep.job import registry
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.accounting import flops_per_token
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import losses_of, mean_loss
from raysweep.networks.plasticity.optimizer import SliceAdamW

BATCH, SEQ_LEN, VOCABULARY, PAIRS, STEPS, SIZE = 8, 128, 1024, 12, 4, 2048


def main() -> None:
    torch.set_num_threads(1)
    write("model_efficiency", [measure(size) for size in ("gpt2-nano", "gpt2-micro")])


def measure(size: str) -> Figure:
    """Measure forward, backward, clipping and optimizer; attention's two products are counted causally, as half."""
    network, family = build_network(ModelSpec(name=size), Facts(vocab_size=VOCABULARY), seq_len=SEQ_LEN, seed=0)
    model = PlasticModel(network, family.sites(network))
    optimizer = SliceAdamW(dict(network.named_parameters()), weight_decay=0.01)
    full = HeadMap.full(*model.shape)
    forward = flops_per_token(model, full, SEQ_LEN) - 2.0 * SEQ_LEN * model.sites[0].head_dim * full.active
    flops = 3.0 * forward * BATCH * SEQ_LEN
    tokens = torch.randint(0, VOCABULARY, (BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    batch = registry.build("tasks", "causal_lm").batch(tokens.numpy(), range(BATCH))
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)

    def step() -> None:
        mean_loss(losses_of(model, batch), batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(1e-3)
        optimizer.zero_grad()

    step()
    samples = []
    for _ in range(PAIRS):
        peak = 2.0 * SIZE**3 / seconds(lambda: torch.mm(left, right), 1)
        samples.append(flops / seconds(step, STEPS) / peak)
    return figure(
        f"{size}: achieved FLOP/s of a training step, share of a matrix product's",
        samples, asked=">= 0.35", unit="", baseline="2048-square fp32 matrix product, one thread",
    )  # fmt: skip


def seconds(call: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    main()
