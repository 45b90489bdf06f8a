"""Inference in which tokens leave: what has left costs nothing more, and is a key and a value still.

Of a token that leaves, the state after its last step is what is predicted from, and what the others see from then on.
Its keys and values are computed once more, from that state, and are kept; in the later blocks of a hierarchical trunk,
which read what the blocks before proposed, those of its last step are. With a step embedding it is seen as at the step
after its last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from raysweep.contracts import Batch, Exit, ExitLook
from raysweep.errors import ModelError
from raysweep.networks.pnn.network import PnnModel, PnnPredictor
from raysweep.networks.pnn.parts import Attention


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """What came out of a batch."""

    logits: torch.Tensor
    """Of what is predicted from, each from the state that its token left with: (labelled, classes) in the order of
    `Batch.labelled`, or (batch, classes) from a classifier."""
    states: torch.Tensor
    """That each token left with, (batch, tokens, width); the embedding at padding."""
    steps: torch.Tensor
    """That each token took, (batch, tokens); 0 at padding."""
    flops: int
    """Of all matrix products that were run, two for a multiply-add: what `torch.utils.flop_counter` counts."""


@dataclass(kw_only=True)
class Work:
    """What has been spent."""

    flops: int = 0


@torch.no_grad()
def infer(
    network: PnnPredictor, batch: Batch, rule: Exit, *, steps: int, min_steps: int = 1, seeds: Sequence[int] = ()
) -> Inferred:
    """Run a network on a batch until every token has left, by a rule or after the last step.

    What becomes of an example depends neither on the other ones nor on padding. An example of which every token that is
    predicted from has left by its prediction leaves whole.

    Args:
        steps: after which every token leaves; more or fewer than in training.
        min_steps: before which none does, 1 to `steps`.
        seeds: of each example, for a rule that leaves by chance.

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
        embedded = embedded.flatten(0, 1)
        states, taken = embedded.clone(), embedded.new_zeros(len(embedded), dtype=torch.long)
        exits = _Exits(network, rule, batch, shape, steps=steps, min_steps=min_steps, seeds=seeds)
        for step in range(steps):
            at = remaining.at
            before = states[at]
            after = _step(trunk, step, before, embedded[at], remaining)
            states[at], taken[at] = after, step + 1
            if step + 1 == steps:
                break
            leaving = exits.leaving(step + 1, at, before, after)
            left = remaining.leave(leaving)
            if not len(remaining.at):
                break
            if len(left):
                remaining.keep(_first_attention(trunk), left, trunk.read(step + 1, states[left], embedded[left]))
        logits = exits.logits(states)
    return Inferred(
        logits=logits,
        states=states.unflatten(0, shape),
        steps=taken.unflatten(0, shape),
        flops=work.flops,
    )


def check_exit(config: Any, rule: Exit) -> None:
    """Check that tokens can leave a network by a rule.

    Raises:
        ModelError: they cannot.
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


@contextmanager
def counted(network: nn.Module) -> Iterator[Work]:
    """Count the matrix products of a network's layers for a while; those inside attention are added by it."""
    work = Work()

    def linear(module: Any, inputs: Any, output: torch.Tensor) -> None:
        work.flops += 2 * module.weight.numel() * (output.numel() // module.out_features)

    def convolution(module: Any, inputs: Any, output: torch.Tensor) -> None:
        work.flops += 2 * module.weight.numel() * (output.numel() // module.out_channels)

    hooks = [
        module.register_forward_hook(count)
        for kind, count in ((nn.Linear, linear), (nn.Conv2d, convolution))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


class Remaining:
    """The tokens of a batch that have not left, and the keys and values of all. A place is a flat position.

    Args:
        real: (batch, tokens), False at padding, which is never there.
        mask: as the attention interface takes it, the same for every query; None: nothing is padded.
    """

    def __init__(self, real: torch.Tensor, mask: torch.Tensor | None, work: Work) -> None:
        self.batch, self.tokens = real.shape
        self.mask = None if mask is None else mask[:, :, :1]
        self.work = work
        self._kept: dict[Attention, list[torch.Tensor]] = {}
        self._stand(real.flatten().nonzero().flatten())

    def _stand(self, at: torch.Tensor) -> None:
        """Note who is there: their places `at`, the rows where there are any, and each one's own row and turn in it."""
        self.at = at
        self.rows, self.row, counts = torch.unique_consecutive(
            at // self.tokens, return_inverse=True, return_counts=True
        )
        self.turn = torch.arange(len(at), device=at.device) - (counts.cumsum(0) - counts)[self.row]
        self.widest = int(counts.max()) if len(at) else 0
        self._whole = len(at) == len(self.rows) * self.widest

    def leave(self, leaving: torch.Tensor) -> torch.Tensor:
        """Let those at some of the places go; return the places left in rows where others remain."""
        before = self.at
        self._stand(before[~leaving])
        left = before[leaving]
        return left[torch.isin(left // self.tokens, self.rows)]

    def keep(self, attention: Attention, at: torch.Tensor, read: torch.Tensor) -> None:
        """Compute keys and values of what is read at some places, (places, width), and keep them."""
        found = [part[0].transpose(0, 1) for part in attention.keys_and_values(read[None])]
        if len(at) == self.batch * self.tokens:
            self._kept[attention] = found
            return
        if attention not in self._kept:
            self._kept[attention] = [part.new_zeros(self.batch * self.tokens, *part.shape[1:]) for part in found]
        for kept, part in zip(self._kept[attention], found, strict=True):
            kept[at] = part

    def attended(self, attention: Attention, read: torch.Tensor, head_mask: torch.Tensor | None) -> torch.Tensor:
        """Attend from those who are there to all; (places, width)."""
        self.keep(attention, self.at, read)
        rows = slice(None) if len(self.rows) == self.batch else self.rows
        keys, values = (
            kept.unflatten(0, (self.batch, self.tokens))[rows].transpose(1, 2) for kept in self._kept[attention]
        )
        own = attention.queries(read[None])[0].transpose(0, 1)
        mask = None if self.mask is None else self.mask[rows]
        mixed = attention.attend(self._in_rows(own).transpose(1, 2), keys, values, mask, head_mask)
        self.work.flops += 4 * len(self.rows) * self.widest * self.tokens * own[0].numel()
        return attention.o_proj(mixed.flatten(0, 1) if self._whole else mixed[self.row, self.turn])

    def _in_rows(self, own: torch.Tensor) -> torch.Tensor:
        """Return what each has, (places, ...), as (rows, widest, ...), filled up with zeros."""
        shape = (len(self.rows), self.widest)
        if self._whole:
            return own.unflatten(0, shape)
        filled = own.new_zeros(*shape, *own.shape[1:])
        filled[self.row, self.turn] = own
        return filled


class _Exits:
    """A rule on its way through the steps of a batch: whom it asks, what it remembers and has predicted."""

    def __init__(
        self, network: PnnPredictor, rule: Exit, batch: Batch, shape: Sequence[int],
        *, steps: int, min_steps: int, seeds: Sequence[int],
    ) -> None:  # fmt: skip
        self.network, self.rule, self.steps, self.min_steps = network, rule, steps, min_steps
        count, self.tokens = shape[0] * shape[1], shape[1]
        places = torch.arange(count, device=batch.labels.device)
        self.predicted = network.predicted_from(places.view(*shape, 1), batch.labelled).flatten()
        """Places that are predicted from."""
        self.by_prediction = rule.reads == "predictions"
        self.asked = torch.zeros(count, dtype=torch.bool, device=places.device)
        """By a rule that reads predictions."""
        self.asked[self.predicted] = True
        self.memory = torch.zeros(count, dtype=torch.float64, device=places.device)
        self.slot = torch.zeros_like(places)
        self.slot[self.predicted] = torch.arange(len(self.predicted), device=places.device)
        self.known = torch.zeros(len(self.predicted), dtype=torch.bool, device=places.device)
        """Whose final logits were computed when they left."""
        self.latest: torch.Tensor | None = None
        """Logits of the last look, (predicted, classes)."""
        self.chance = torch.zeros(0)
        if rule.reads == "chance":
            draws = [np.random.default_rng(seed).random(self.tokens) for seed in seeds]
            self.chance = torch.from_numpy(np.concatenate(draws)).to(places.device)

    def leaving(self, step: int, at: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Return which of those at some places leave after a step, (places,)."""
        leaving = torch.zeros_like(at, dtype=torch.bool)
        if step + self.rule.looks_back < self.min_steps:
            return leaving
        of = self.asked[at] if self.by_prediction else slice(None)
        asked, state = at[of], after[of]
        look = ExitLook(step=step, steps=self.steps, min_steps=self.min_steps, before=before[of], after=state,
                    memory=self.memory[asked], **self._read(asked, state))  # fmt: skip
        leaves, self.memory[asked] = self.rule(look)
        if step < self.min_steps:
            return leaving
        leaving[of] = leaves
        if self.by_prediction:
            self.known[self.slot[asked[leaves]]] = True
            leaving |= ~torch.isin(at // self.tokens, asked[~leaves] // self.tokens)
        return leaving

    def _read(self, asked: torch.Tensor, state: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Return what the rule reads of tokens besides their states."""
        if self.rule.reads == "chance":
            return {"chance": self.chance[asked]}
        if self.rule.reads == "exit_head":
            return {"leave": self.network.exit_head(state).squeeze(-1)}
        if not self.by_prediction:
            return {}
        logits, slots = self.network.predict(state), self.slot[asked]
        before = None if self.latest is None else self.latest[slots]
        if self.latest is None:
            self.latest = logits.new_zeros(len(self.predicted), logits.shape[-1])
        self.latest[slots] = logits
        return {"logits": logits, "logits_before": before}

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return what is predicted from the states that tokens left with; what a look has told is not told again."""
        logits = self.network.predict(states[self.predicted[~self.known]])
        if self.latest is None:
            return logits
        return self.latest.index_copy(0, (~self.known).nonzero().flatten(), logits)


def _step(
    trunk: PnnModel, step: int, state: torch.Tensor, embedded: torch.Tensor, remaining: Remaining
) -> torch.Tensor:
    """Return the states after a step, from 0, of those who are there; (places, width)."""
    after: torch.Tensor = trunk.refiner(
        state, trunk.read(step, state, embedded), remaining=remaining, head_mask=trunk.head_mask(step, state)
    )
    return after


def _first_attention(trunk: PnnModel) -> Attention:
    return next(module for module in trunk.modules() if isinstance(module, Attention))
