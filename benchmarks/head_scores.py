"""Measure the time of scoring heads, and the error and memory of streamed entropy against explicit attention maps.

    python -m benchmarks.head_scores             # add --small to try it out

All heads of a GPT-2 (gpt2-mini: 8 layers of 8 heads), scored by the probe and, by Taylor alone, through gates.
Memory is what the C library's heap and its mappings grow by at most while statistics of one layer are computed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.reference import figure, write
from raysweep.contracts import Batch, Facts
from raysweep.job import registry
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.attention_statistics import attention_statistics
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.leave_one_out import contributions
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import example_losses, losses_of
from raysweep.networks.plasticity.probe import probe

RUNS = 7
LENGTH, HEADS, WIDTH = 1024, 12, 64


def main(small: bool) -> None:
    torch.set_num_threads(1)
    model, batch = _model("gpt2-nano" if small else "gpt2-mini", seq_len=64 if small else 256)
    runs = 3 if small else RUNS
    whole = HeadMap.full(*model.shape)
    seconds: dict[str, list[float]] = {"plain": [], "taylor": [], "probe": []}
    for _ in range(runs + 1):  # alternately: the machine's load falls on all alike
        seconds["plain"].append(_seconds(lambda: _plain(model, batch)))
        seconds["taylor"].append(_seconds(lambda: _taylor(model, batch)))
        seconds["probe"].append(_seconds(lambda: probe(model, [batch], whole, lambda tensor: tensor)))
    plain, taylor, probed = (times[1:] for times in seconds.values())
    leave_one_out = _seconds(lambda: contributions(model, [batch], whole))
    length = 256 if small else LENGTH
    peaks = _peak("streamed", length) / _peak("maps", length)
    figures = [
        figure("Taylor scores of all heads", [t / p for t, p in zip(taylor, plain, strict=True)],
               asked="<= 2", unit="x", baseline="one plain forward and backward pass of the same batch"),
        figure("every score of all heads, one probe", [t / p for t, p in zip(probed, plain, strict=True)],
               asked="(measured)", unit="x", baseline="one plain forward and backward pass of the same batch"),
        figure("leave-one-out of all heads", [leave_one_out / p for p in plain],
               asked="(measured)", unit="x", baseline="one plain forward and backward pass of the same batch"),
        figure(f"streamed entropy, T = {length}, largest error", [_error(length)],
               asked="<= 1e-5", unit="", baseline="explicit maps in fp64"),
        figure(f"streamed entropy, T = {length}, peak extra memory", [peaks],
               asked="<= 0.25", unit="x", baseline="entropy of explicit maps, fp32"),
    ]  # fmt: skip
    write("head_scores", figures)
    for one, limit in ((figures[0], 2.0), (figures[3], 1e-5), (figures[4], 0.25)):
        assert small or one.measured <= limit, f"{one.name}: {one.measured:g}, asked {limit:g}"


def _model(size: str, seq_len: int) -> tuple[PlasticModel, Batch]:
    vocab_size = registry.load("models", "gpt2").sizes[size]["vocab_size"]
    network, family = build_network(ModelSpec(name=size), Facts(vocab_size=vocab_size), seq_len=seq_len, seed=0)
    tokens = torch.randint(0, vocab_size, (4, seq_len), generator=torch.Generator().manual_seed(0))
    batch = registry.build("tasks", "causal_lm").batch(tokens.numpy(), range(4))
    return PlasticModel(network.eval(), family.sites(network)), batch


def _seconds(act: Callable[[], Any]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


def _plain(model: PlasticModel, batch: Batch) -> None:
    """Compute the gradients of all parameters, as a training step does."""
    example_losses(losses_of(model, batch), batch.labels).mean().backward()
    model.zero_grad(set_to_none=True)


def _taylor(model: PlasticModel, batch: Batch) -> None:
    gates = [torch.ones(len(batch.inputs), 1, model.shape[1], requires_grad=True) for _ in model.sites]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with model.replaced_gates(gates):
        losses = example_losses(losses_of(model, batch), batch.labels)
    torch.autograd.grad(losses.sum(), gates)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


# Entropy.


def _queries_and_keys(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, HEADS, length, WIDTH, generator=generator).unbind()
    return 2 * query, key


def _streamed(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    first = torch.zeros(1, dtype=torch.long)
    return attention_statistics(query, key, None, scaling=WIDTH**-0.5, causal=True, first=first).entropy


def _maps(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return entropies from whole maps, as eager attention has them."""
    length = query.shape[2]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(-1, -2) * WIDTH**-0.5).masked_fill_(later, -torch.inf)
    seen = torch.arange(1, length + 1, dtype=query.dtype)
    return torch.special.entr(scores.softmax(-1)).sum(-1) / seen.log().clamp_min(1e-30)


def _error(length: int) -> float:
    query, key = _queries_and_keys(length)
    explicit = _maps(query.double(), key.double())[:, :, 1:]
    return float((_streamed(query, key)[:, :, 1:] - explicit).abs().max())


def _peak(way: str, length: int) -> float:
    """Return by how many bytes memory grows at most, measured in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.head_scores", way, str(length)], capture_output=True, text=True, check=True
    )
    return float(ran.stdout)


def _print_peak(way: str, length: int) -> None:
    torch.set_num_threads(1)
    act = {"streamed": _streamed, "maps": _maps}[way]
    with torch.no_grad():
        act(*_queries_and_keys(128))  # what is loaded and allocated once is not counted
        query, key = _queries_and_keys(length)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts again from here
        before = _status("VmRSS")
        act(query, key)
    print(_status("VmHWM") - before)


def _status(field: str) -> float:
    """Return a field of /proc/self/status in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return float(line.split()[1]) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] in (["streamed"], ["maps"]):
        _print_peak(sys.argv[1], int(sys.argv[2]))
    else:
        main("--small" in sys.argv)
