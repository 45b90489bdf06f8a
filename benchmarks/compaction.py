"""Compare a compacted network with the masked one: function, training, and time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.reference import Figure, figure, write
from raysweep.contracts import Facts
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec
from raysweep.networks.configuration import task_of
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.accounting import flops_per_token
from raysweep.networks.plasticity.compaction import compact, compact_tensors
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.surgery import absent_slices

PLANS, VOCABULARY, SEQ_LEN, STEPS = 10, 1024, 32, 6
LAYERS, PAIRS, STEPS_A_PAIR = 2, 7, 3
LENGTHS, TOKENS = (128, 512, 1024), 1024
"""Windows of each length, as many as make TOKENS in a pass."""
ASKED = {torch.float64: "<= 1e-12", torch.float32: "<= 1e-5"}


def main() -> None:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures = [same_logits(dtype) for dtype in ASKED]
    figures += [same_training(), *(forward_time(length, device) for length in LENGTHS), gate_time(device)]
    write("compaction", figures, device=device if device == "cpu" else f"{torch.cuda.get_device_name()}, bf16")


def same_logits(dtype: torch.dtype) -> Figure:
    """Compare the logits under random plans, each head gone with probability one half, over all families."""
    differences = []
    for size in one_size_a_family():
        for seed in range(PLANS):
            model, family, head_map = pruned(size, seed, dtype)
            smaller, inputs = compact(model.network, family, head_map), inputs_of(model)
            with torch.no_grad():
                expected = model(inputs)
                found = PlasticModel(smaller, family.sites(smaller))(inputs)
            differences.append(float((found - expected).abs().max() / expected.abs().max().clamp_min(1)))
    families = ", ".join(one_size_a_family())
    return figure(
        f"largest difference of logits, masked and compacted, {str(dtype).removeprefix('torch.')}",
        [max(differences)], asked=ASKED[dtype], unit="", baseline=f"{PLANS} random plans each of {families}",
    )  # fmt: skip


def same_training() -> Figure:
    """Compare losses and weights of masked SliceAdamW and compacted plain AdamW, with decay and clipping."""
    differences = []
    for size in one_size_a_family():
        model, family, head_map = pruned(size, 0, torch.float64)
        masked = SliceAdamW(dict(model.network.named_parameters()), weight_decay=0.1)
        masked.clear(absent_slices(model.sites, head_map))
        smaller = compact(model.network, family, head_map)
        theirs = PlasticModel(smaller, family.sites(smaller))
        plain = torch.optim.AdamW(
            [{"params": [p for p in smaller.parameters() if p.dim() >= 2], "weight_decay": 0.1},
             {"params": [p for p in smaller.parameters() if p.dim() < 2], "weight_decay": 0.0}], lr=1e-3,
        )  # fmt: skip
        for step in range(STEPS):
            inputs = inputs_of(model, seed=step)
            losses = [learn(model, inputs, partial(masked.step, 1e-3)), learn(theirs, inputs, plain.step)]
            differences.append(abs(losses[0] - losses[1]))
        left = compact_tensors(model.network.state_dict(), family, model.network, head_map)
        differences += [float((tensor - smaller.state_dict()[name]).abs().max()) for name, tensor in left.items()]
    return figure(
        f"largest difference of loss and weights over {STEPS} AdamW steps, masked and compacted, float64",
        [max(differences)], asked="<= 1e-10", unit="", baseline=", ".join(one_size_a_family()),
    )  # fmt: skip


def learn(model: PlasticModel, inputs: torch.Tensor, step: Callable[[], Any]) -> float:
    """Take one step on an artificial loss that depends on every parameter."""
    loss = torch.logsumexp(model(inputs), -1).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    step()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def forward_time(length: int, device: str) -> Figure:
    """Time the forward pass with half of the heads, compacted, against all of them."""
    network, family = gpt2_small_layers(length, device)
    model = PlasticModel(network, family.sites(network))
    half = HeadMap.full(*model.shape).without((layer, head) for layer in range(LAYERS) for head in range(0, 12, 2))
    smaller = compact(network, family, half)
    tokens = torch.randint(0, VOCABULARY, (TOKENS // length, length), device=device)
    flops = [flops_per_token(model, head_map, length) for head_map in (half, HeadMap.full(*model.shape))]

    @torch.no_grad()
    def forward(one: Any) -> None:
        one(tokens, use_cache=False)

    samples = ratios(lambda: forward(smaller), lambda: forward(network), device)
    ratio = flops[0] / flops[1]
    return figure(
        f"forward time at 50% of heads, T = {length}", samples, asked=f"{ratio:.3f} +- 10%", unit="x",
        baseline=f"{LAYERS} layers of GPT-2 small with all heads; asked is the ratio of FLOPs",
    )  # fmt: skip


def gate_time(device: str) -> Figure:
    """Time forward and backward of a network whose gates are all open, against the network without gates."""
    plain, family = gpt2_small_layers(512, device)
    gated = copy.deepcopy(plain)
    model = PlasticModel(gated, family.sites(gated))
    model.set_gates(HeadMap.full(*model.shape))
    tokens = torch.randint(0, VOCABULARY, (TOKENS // 512, 512), device=device)

    def step(one: Any, call: Callable[[], torch.Tensor]) -> None:
        call().float().logsumexp(-1).mean().backward()
        one.zero_grad(set_to_none=True)

    samples = ratios(
        lambda: step(model, lambda: model(tokens)),
        lambda: step(plain, lambda: plain(tokens, use_cache=False).logits), device,
    )  # fmt: skip
    return figure(
        "forward and backward with gates, nothing pruned", samples, asked="<= 1.03", unit="x",
        baseline="the same transformers network without gates",
    )  # fmt: skip


def ratios(ours: Callable[[], None], theirs: Callable[[], None], device: str) -> list[float]:
    """Return ratios of median times. Passes are run by turns, so that other load of the machine slows both alike."""
    for warm_up in (ours, theirs, ours, theirs):
        warm_up()
    samples = []
    for _ in range(PAIRS):
        pairs = [(seconds(ours, device), seconds(theirs, device)) for _ in range(STEPS_A_PAIR)]
        first, second = (median(times) for times in zip(*pairs, strict=True))
        samples.append(first / second)
    return samples


def seconds(call: Callable[[], None], device: str) -> float:
    repeats = 1 if device == "cpu" else 50
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def gpt2_small_layers(length: int, device: str) -> tuple[Any, Any]:
    """Return few layers of the width of GPT-2 small with a small vocabulary: heads take most of the time."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, n_head=12, n_embd=768, n_positions=length, vocab_size=VOCABULARY,
        bos_token_id=None, eos_token_id=None,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    network = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return network.to(device, dtype), registry.build("models", "gpt2")


def one_size_a_family() -> list[str]:
    return sorted({family: size for size, family in sorted(scratch_sizes().items(), reverse=True)}.values())


def pruned(size: str, seed: int, dtype: torch.dtype) -> tuple[PlasticModel, Any, HeadMap]:
    """Return a network behind the gates of a random plan; every layer keeps a head."""
    sees = registry.load("tasks", task_of(ModelSpec(name=size))).reads == "images"
    facts = Facts(image_shape=(1, 8, 8), num_classes=10) if sees else Facts(vocab_size=VOCABULARY)
    network, family = build_network(ModelSpec(name=size), facts, seq_len=SEQ_LEN, seed=seed)
    model = PlasticModel(network.to(dtype).eval(), family.sites(network))
    generator = np.random.default_rng(seed)
    gone = generator.random(model.shape) < 0.5
    gone[range(model.shape[0]), generator.integers(model.shape[1], size=model.shape[0])] = False
    head_map = HeadMap.full(*model.shape).without((int(layer), int(head)) for layer, head in np.argwhere(gone))
    model.set_gates(head_map)
    return model, family, head_map


def inputs_of(model: PlasticModel, seed: int = 0) -> torch.Tensor:
    """Return random tokens, or random pixels for a network of images."""
    network: Any = model.network
    generator = torch.Generator().manual_seed(seed)
    if network.main_input_name == "pixel_values":
        shape = (2, network.config.num_channels, network.config.image_size, network.config.image_size)
        return torch.randn(shape, generator=generator, dtype=network.dtype)
    return torch.randint(0, VOCABULARY, (2, SEQ_LEN), generator=generator)


if __name__ == "__main__":
    main()
