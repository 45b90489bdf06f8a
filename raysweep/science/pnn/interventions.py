"""Run a network step by step, and read or replace what a part of it puts out at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from raysweep.contracts import Batch

Part = Literal["attention", "heads", "proposal", "gate"]
"""`attention`: the output of all heads together, (batch, tokens, width); `heads`: the input of the output projection by
head, (batch, tokens, heads, head_dim); `proposal`: the update behind its last LayerNorm, before the gate; `gate`: the
values of the gate, in (0, 1)."""
Change = Callable[[int, torch.Tensor], torch.Tensor]
"""(step from 0, output) -> the output that takes its place."""


def step_states(network: Any, batch: Batch, steps: int | None = None) -> list[torch.Tensor]:
    """Return the embedding of a batch and its state after each step, (batch, tokens, width) each.

    Args:
        steps: T; the network's own unless given.
    """
    states: list[torch.Tensor] = network.pnn.states(batch.inputs, batch.attention_mask, batch.token_types, steps)
    return states


@contextmanager
def changed(network: Any, part: Part, change: Change) -> Iterator[None]:
    """Replace the output of a part at every step for a while.

    Args:
        change: called once a step, with each block of a hierarchical refiner in turn but for its one final gate;
            returns its argument where nothing is to change.
    """
    modules = _modules(network, part)
    # Calls are counted to know the step: a shared module is called at every step, a module of a stack at one.
    a_step = 1 if network.config.trunk == "layers" else len(modules)
    calls = 0

    def begin(*_: Any) -> None:
        nonlocal calls
        calls = 0

    def after(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return change((calls - 1) // a_step, output)

    def before(projection: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        nonlocal calls
        calls += 1
        heads = inputs[0].unflatten(-1, (-1, network.config.hidden_size // network.config.num_attention_heads))
        return (change((calls - 1) // a_step, heads).flatten(-2),)

    # Every pass begins with the embedding, so the count starts anew there, whatever ended the last pass.
    handles = [network.pnn.embeddings.register_forward_pre_hook(begin)]
    for module in modules:
        # The output projection mixes the heads: its input is changed, not its output.
        handles.append(
            module.register_forward_pre_hook(before) if part == "heads" else module.register_forward_hook(after)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def observed(network: Any, part: Part, see: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Call `see` with the output of a part at every step for a while; nothing is changed."""

    def same(step: int, output: torch.Tensor) -> torch.Tensor:
        see(step, output)
        return output

    with changed(network, part, same):
        yield


def part_outputs(
    network: Any, part: Part, batch: Batch, reduce: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:  # fmt: skip
    """Run a batch and return what a part puts out at each of its calls, reduced."""
    outputs: list[torch.Tensor] = []
    # Outputs are reduced as they appear: whole ones, (batch, tokens, width) for each call, need not be kept.
    with observed(network, part, lambda step, output: outputs.append(reduce(output))):
        step_states(network, batch)
    return outputs


def has_gate(network: Any) -> bool:
    """Return whether a network has a gate that depends on the input."""
    return network.config.trunk in ("refiner", "hierarchical") and network.config.gate == "query_key"


def whole_parts(network: Any) -> list[Part]:
    """Return the parts that have exactly one output a step."""
    config = network.config
    # A hierarchical refiner has every part once in each block.
    if config.trunk == "hierarchical":
        return []
    # The last LayerNorm of a layer puts out its state, not an update: a layer has no proposal.
    if config.trunk in ("layers", "shared_layer"):
        return ["attention", "heads"]
    parts: list[Part] = ["attention", "heads", "proposal"]
    return [*parts, "gate"] if has_gate(network) else parts


def _modules(network: Any, part: Part) -> list[nn.Module]:
    """Return the modules whose output the part is, in the order in which they are called."""
    trunk = network.pnn.layers if network.config.trunk == "layers" else [network.pnn.refiner]
    proposals = [proposal for each in trunk for proposal in getattr(each, "blocks", [each])]
    if part == "gate":
        return [each.gate for each in trunk if hasattr(each, "gate")]
    if part == "heads":
        return [proposal.attention.o_proj for proposal in proposals]
    return [proposal.attention if part == "attention" else proposal.feed_forward_norm for proposal in proposals]
