"""Compare the slice-scaled optimizer step, with absent and new heads, with plain AdamW on the same parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.reference import Figure, figure, write
from raysweep.contracts import Facts, Family
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.surgery import absent_slices, grown_slices

PAIRS, STEPS = 31, 20


def main() -> None:
    torch.set_num_threads(1)
    write("optimizer_step", [measure(size) for size in ("gpt2-nano", "gpt2-micro", "gpt2-mini")])


def measure(size: str) -> Figure:
    ours, plain = sliced_optimizer(size), plain_optimizer(size)
    samples = []
    for _ in range(PAIRS):  # step by step in turn: both see whatever else the machine does
        pairs = [(seconds(lambda: ours.step(1e-3, {0: 3.0})), seconds(plain.step)) for _ in range(STEPS)]
        sliced, whole = (median(times) for times in zip(*pairs, strict=True))
        samples.append(sliced / whole)
    return figure(
        f"{size}: slice-scaled step / AdamW step, 30% of heads absent and 10% new",
        samples, asked="<= 1.10", unit="x", baseline="torch.optim.AdamW(fused=True)",
    )  # fmt: skip


def sliced_optimizer(size: str) -> SliceAdamW:
    network = network_with_gradients(size)
    model = PlasticModel(network, family_of(size).sites(network))
    layers, heads = model.shape
    slots = [(layer, head) for layer in range(layers) for head in range(heads)]
    absent, new = slots[::10] + slots[3::10] + slots[6::10] + slots[9::10], slots[9::10]
    before = HeadMap.full(layers, heads).without(absent)
    optimizer = SliceAdamW(dict(network.named_parameters()), weight_decay=0.01)
    optimizer.step(1e-3)
    optimizer.clear(absent_slices(model.sites, before.with_grown(new, cycle=1)))
    optimizer.favour(dict.fromkeys(grown_slices(model.sites, before, new), 0))
    return optimizer


def plain_optimizer(size: str) -> torch.optim.AdamW:
    parameters = list(network_with_gradients(size).parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def network_with_gradients(size: str) -> torch.nn.Module:
    network, _ = build_network(ModelSpec(name=size), Facts(vocab_size=1024), seq_len=128, seed=0)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


def family_of(size: str) -> Family:
    return build_network(ModelSpec(name=size), Facts(vocab_size=1024), seq_len=128, seed=0)[1]


def seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
