"""Inference with early exits: a token that has left costs nothing more, and other tokens still attend to it.

A token is predicted from its state after its last step, and the other tokens see that state from then on. Its keys and
values are computed once more, from that state, and kept. The later blocks of a hierarchical trunk read what the blocks
before them proposed, so they keep the keys and values of the token's last step. With a step embedding, a token that
left is seen as at the step after its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raysweep.contracts import Batch, Exit
from raysweep.errors import ModelError
from raysweep.networks.pnn.exiting import ExitDecisions
from raysweep.networks.pnn.flops import counted
from raysweep.networks.pnn.network import PnnPredictor
from raysweep.networks.pnn.parts import Attention
from raysweep.networks.pnn.remaining import Remaining
from raysweep.networks.pnn.trunk import PnnModel


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """What inference returns for a batch."""

    logits: torch.Tensor
    """Predictions, each from the last state of its token: (labelled, classes) in the order of `Batch.labelled`, or
    (batch, classes) from a classifier."""
    states: torch.Tensor
    """Last state of each token, (batch, tokens, width); the embedding at padding."""
    steps: torch.Tensor
    """Steps that each token took, (batch, tokens); 0 at padding."""
    flops: int
    """FLOPs of all matrix products that were run, two for a multiply-add: what `torch.utils.flop_counter` counts."""


@torch.no_grad()
def infer(
    network: PnnPredictor, batch: Batch, rule: Exit, *, steps: int, min_steps: int = 1, seeds: Sequence[int] = ()
) -> Inferred:
    """Run a network on a batch until every token has left, by a rule or after the last step.

    The outcome of an example depends neither on the other examples nor on padding. With a rule that reads predictions,
    a whole example leaves once all its predicted tokens have left.

    Args:
        steps: after which every token leaves; more or fewer than in training.
        min_steps: steps that every token takes, 1 to `steps`.
        seeds: one for each example, for a rule that leaves by chance.

    Raises:
        ModelError: a network of separate layers, or one without the exit head that the rule reads.
    """
    check_exit(network.config, rule)
    assert 1 <= min_steps <= steps
    trunk = network.pnn
    with counted(network) as work:
        embedded = trunk.embeddings(batch.inputs, batch.token_types)
        shape = embedded.shape[:2]
        real = torch.ones(shape, device=embedded.device) if batch.attention_mask is None else batch.attention_mask
        remaining = Remaining(real.bool(), trunk.mask(embedded, batch.attention_mask), work)
        exits = ExitDecisions(network, rule, batch, shape, steps=steps, min_steps=min_steps, seeds=seeds)
        states, taken = _last_states(trunk, embedded.flatten(0, 1), remaining, exits, steps)
        # Inside the counter: the heads of tokens that left without a prediction are part of the cost.
        logits = exits.logits(states)
    return Inferred(
        logits=logits,
        states=states.unflatten(0, shape),
        steps=taken.unflatten(0, shape),
        flops=work.flops,
    )


def _last_states(
    trunk: PnnModel, embedded: torch.Tensor, remaining: Remaining, exits: ExitDecisions, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last state of each token and the steps it took, (batch * tokens, ...); padding keeps its embedding."""
    states, taken = embedded.clone(), embedded.new_zeros(len(embedded), dtype=torch.long)
    for step in range(steps):
        at = remaining.at
        before = states[at]
        after = _step(trunk, step, before, embedded[at], remaining)
        states[at], taken[at] = after, step + 1
        # After the last step everything leaves anyway: asking the rule would pay for predictions nobody needs.
        if step + 1 == steps:
            break
        left = remaining.leave(exits.leaving(step + 1, at, before, after))
        if not len(remaining.at):
            break
        if len(left):
            # The kept keys and values were computed from the state *before* the last step. The others must see the
            # final state, so they are computed once more, as the next step would read it.
            remaining.keep(_first_attention(trunk), left, trunk.read(step + 1, states[left], embedded[left]))
    return states, taken


def check_exit(config: Any, rule: Exit) -> None:
    """Check that a network supports early exits by a rule.

    Raises:
        ModelError: its layers are separate, or it has no exit head but the rule reads one.
    """
    if not getattr(config, "shared", False):
        raise ModelError(
            f"a {config.model_type!r} network of separate layers has no step to leave after: tokens leave a PNN whose "
            "trunk is refiner, hierarchical or shared_layer."
        )
    if rule.reads == "exit_head" and config.step_weights != "ponder":
        raise ModelError(
            f"model.step_weights = {config.step_weights!r}: the exit `learned` reads an exit head, which is trained by "
            "step_weights: ponder. Train with that, or take another exit."
        )


def _step(
    trunk: PnnModel, step: int, state: torch.Tensor, embedded: torch.Tensor, remaining: Remaining
) -> torch.Tensor:
    """Return the states of the remaining tokens after step `step`, counted from 0; (places, width)."""
    after: torch.Tensor = trunk.refiner(
        state, trunk.read(step, state, embedded), remaining=remaining, head_mask=trunk.head_mask(step, state)
    )
    return after


def _first_attention(trunk: PnnModel) -> Attention:
    # In a hierarchical trunk only the first block reads the state itself; later blocks also read earlier proposals,
    # which a token that has left does not make any more.
    return next(module for module in trunk.modules() if isinstance(module, Attention))
