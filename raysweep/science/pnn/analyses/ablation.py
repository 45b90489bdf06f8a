"""Ablate each part of each step, by its mean or by another token's output, and measure the rise of the loss.

The mean removes what an output says of its token. Another token's output (resampling) stays a usual output, but of
the wrong token. Both take effect behind the LayerNorm of a part, which would undo a change of scale before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from raysweep.contracts import Array, Batch
from raysweep.errors import NotApplicableError
from raysweep.science.pnn.activity import real_tokens
from raysweep.science.pnn.interventions import Part, changed, whole_parts
from raysweep.science.pnn.replacing import final_losses, part_means
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted
from raysweep.science.statistics.resampling import paired

By = Literal["mean", "resample"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A part of one step, and how it is ablated."""

    part: Part
    step: int
    """Counted from 0."""
    head: int | None
    """One head of the part `heads`; None for other parts."""
    by: By

    @property
    def name(self) -> str:
        """Name of its comparison; steps are counted from 1 there."""
        what = self.part if self.head is None else f"head {self.head}"
        return f"step {self.step + 1}: {what} by {self.by}"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("optogenetics",)

    def passes(self, subject: PnnSubject) -> int:
        return 1 + len(whole_parts(subject.network)) + len(list(_targets(subject.network)))

    def __call__(self, subject: PnnSubject) -> Finding:
        targets = list(_targets(subject.network))
        if not targets:
            raise NotApplicableError("it ablates the parts of a step, and a hierarchical step has several of each.")
        # All losses are of the same masked tokens, so each ablation is compared token by token.
        plain = subject.predictions()
        # Means of the intact network, of each part at each step: steps differ in what they put out.
        means = {part: part_means(subject.network, part, subject.batches) for part in whole_parts(subject.network)}
        generator = subject.generator("ablation")
        tested = [
            paired(target.name, _ablated_loss(subject, target, means) - plain.loss[-1], plain.sequences, generator)
            for target in targets
        ]
        comparisons = adjusted(tested)
        return Finding(
            experiment="ablation",
            measured="Loss of masked tokens at the last step with one part of one step ablated, behind its LayerNorm, "
            "minus the loss with nothing ablated, on the same masks.",
            verdict=_verdict(comparisons),
            comparisons=comparisons,
            figures={"loss": float(plain.loss[-1].mean()), "tokens": len(plain.labels)},
            panels=[_panel(by, targets, comparisons) for by in ("mean", "resample")],
        )


def _targets(network: Any) -> Iterator[Target]:
    """Yield every part of every step in both ways; none of a hierarchical refiner."""
    heads = network.config.num_attention_heads
    for part in whole_parts(network):
        # Heads are ablated one by one, other parts as a whole.
        for head in range(heads) if part == "heads" else (None,):
            for step in range(network.config.num_steps):
                for by in ("mean", "resample"):
                    yield Target(part=part, step=step, head=head, by=by)


def _ablated_loss(subject: PnnSubject, target: Target, means: Mapping[Part, Sequence[torch.Tensor]]) -> Array:
    """Return the loss of each masked token at the last step with a target ablated, nats, (tokens,)."""
    # A generator for each target: its donors do not depend on which targets were ablated before.
    generator = subject.generator(target.name)
    losses = []
    for batch in subject.batches:
        mean = means[target.part][target.step]
        replacement = _Replacement(target, mean, batch, generator)
        with changed(subject.network, target.part, replacement):
            losses.append(final_losses(subject.network, [batch]))
    return np.concatenate(losses)


class _Replacement:
    """Replaces the output of a target on one batch."""

    def __init__(self, target: Target, mean: torch.Tensor, batch: Batch, generator: np.random.Generator) -> None:
        self.target, self.mean, self.real = target, mean, real_tokens(batch)
        # Donors are real tokens of the same batch: padding neither gives nor gets an output.
        order = generator.permutation(int(self.real.sum()))
        self.donors = torch.from_numpy(order).to(batch.inputs.device)

    def __call__(self, step: int, output: torch.Tensor) -> torch.Tensor:
        if step != self.target.step:
            return output
        new = output.clone()
        new[self.real] = self.mean if self.target.by == "mean" else output[self.real][self.donors]
        if self.target.head is None:
            return new
        # Only the head in question is replaced: outputs are (batch, tokens, heads, head_dim).
        one = torch.arange(output.shape[2], device=output.device) == self.target.head
        return torch.where(one[:, None], new, output)


def _verdict(comparisons: list[Comparison]) -> str:
    """Say how many ablations raise or lower the loss, and which raises it most."""
    # Hundreds of ablations are tested: only those that are found after adjustment count.
    raising = [one for one in comparisons if one.found and one.effect > 0]
    lowering = [one for one in comparisons if one.found and one.effect < 0]
    if not raising and not lowering:
        return f"None of {len(comparisons)} ablations was found to change the loss."
    said = f"Of {len(comparisons)} ablations {len(raising)} raise the loss and {len(lowering)} lower it"
    if raising:
        worst = max(raising, key=lambda one: one.effect)
        said += f"; the largest rise is that of {worst.name}, {worst.effect:+.3f} nats"
    return f"{said}."


def _panel(by: By, targets: list[Target], comparisons: list[Comparison]) -> Panel:
    # Targets come with their steps in order, so effects of one part or head line up as a line over steps.
    chosen = [(target, one) for target, one in zip(targets, comparisons, strict=True) if target.by == by]
    rows: dict[str, list[float]] = {}
    for target, one in chosen:
        rows.setdefault(target.part if target.head is None else f"head {target.head}", []).append(one.effect)
    steps = max(target.step for target in targets) + 1
    return Panel(
        title=f"ablated by {by}", kind="lines", x_label="step", y_label="change of loss, nats", level=0.0,
        series=[Series(name=name, x=list(range(1, steps + 1)), y=effects) for name, effects in rows.items()],
    )  # fmt: skip
