"""Measure how much each component of the refiner matters: the rise of the loss when it is held at its mean.

Leave-one-out alone would miss components that stand in for each other: neither is needed while the other is there.
Shapley values average over all sets of other components that are held, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any, ClassVar

import numpy as np

from raysweep.contracts import Array
from raysweep.errors import NotApplicableError
from raysweep.science.pnn.interventions import Part, has_gate
from raysweep.science.pnn.replacing import final_losses, held_at, part_means
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.pnn.trace import labelled_places
from raysweep.science.statistics.finding import Comparison, Finding, Panel, adjusted, with_intervals
from raysweep.science.statistics.resampling import paired

COMPONENTS: dict[str, Part] = {"attention": "attention", "feed_forward": "proposal", "gate": "gate"}
"""Component -> the part that is held. The feed-forward part is held behind its LayerNorm, which would undo a change of
scale before it."""
MEASURED = (
    "Rise of the loss when a component is held at its mean over held-out tokens, at every step and at each step alone: "
    "leave-one-out, and exact Shapley values over all sets of components. Same masked tokens throughout; null: no rise."
)
Losses = Mapping[frozenset[str], Array]
"""Set of components that are held at their means -> loss of each masked token, nats, (tokens,)."""
Values = dict[str, Array]
"""Component -> its part of the rise of each masked token's loss, nats, (tokens,)."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("layer_importance",)

    def passes(self, subject: PnnSubject) -> int:
        # A pass for the means of each component, and one for every set of components in every scope.
        count = len(_components(subject))
        return count + 2**count * (subject.network.config.num_steps + 1)

    def __call__(self, subject: PnnSubject) -> Finding:
        components = _components(subject)
        parts = [COMPONENTS[name] for name in components]
        # Means are those of the intact network, for every set of held components.
        means = {part: part_means(subject.network, part, subject.batches) for part in parts}
        every_step = range(subject.network.config.num_steps)
        scopes = {"every step": every_step, **{f"step {step + 1}": [step] for step in every_step}}
        losses = {scope: _losses(subject, components, means, steps) for scope, steps in scopes.items()}
        return conclude(components, losses, subject)


def conclude(
    components: Sequence[str], losses: Mapping[str, Mapping[frozenset[str], Array]], subject: PnnSubject
) -> Finding:
    """Return the finding that follows from losses.

    Args:
        losses: scope, such as "every step" -> set of held components -> loss of each masked token, (tokens,).
    """
    shares = {scope: shapley(components, of_scope) for scope, of_scope in losses.items()}
    alone = {scope: leave_one_out(components, of_scope) for scope, of_scope in losses.items()}
    comparisons = _comparisons(components, shares, alone, subject)
    return Finding(
        experiment="component_importance",
        measured=MEASURED,
        verdict=verdict(components, comparisons),
        comparisons=comparisons,
        figures={
            "loss": {
                scope: {"+".join(sorted(held)) or "intact": float(values.mean()) for held, values in of_scope.items()}
                for scope, of_scope in losses.items()
            }
        },
        panels=[_panel("Shapley value", "shapley", components, comparisons),
                _panel("Leave one out", "leave one out", components, comparisons)],
    )  # fmt: skip


def shapley(players: Sequence[str], losses: Losses) -> Values:
    """Return the Shapley value of each player for each token (Shapley 1953), its mean marginal loss over all orders.

    The values of all players add up to the loss with all of them held minus that with none.

    Args:
        losses: every set of held players -> (tokens,).
    """
    # Exact: with three components there are eight sets. The weight of a set is the share of orders in which exactly
    # its members come before the player.
    count = len(players)
    values = {}
    for player in players:
        others = [other for other in players if other != player]
        marginal = [
            factorial(size) * factorial(count - size - 1) / factorial(count)
            * (losses[frozenset({*held, player})] - losses[frozenset(held)])
            for size in range(count)
            for held in combinations(others, size)
        ]  # fmt: skip
        values[player] = np.sum(marginal, axis=0)
    return values


def leave_one_out(players: Sequence[str], losses: Losses) -> Values:
    """Return the loss of each token with one player held minus that with none held, (tokens,) each."""
    return {player: losses[frozenset({player})] - losses[frozenset()] for player in players}


def verdict(components: Sequence[str], comparisons: Sequence[Comparison]) -> str:
    """Name the component with the largest Shapley value over every step, if it differs from all others."""
    found = {comparison.name: comparison for comparison in comparisons}
    # Each step alone is tested, too, but the sentence is about all steps together.
    ranked = sorted(components, key=lambda name: -found[f"shapley, every step: {name}"].effect)
    matters = [name for name in ranked if found[f"shapley, every step: {name}"].above]
    harmful = [name for name in ranked if found[f"shapley, every step: {name}"].below]
    # A component whose mean is better than its output is worth saying, though it is not one that matters.
    if not matters:
        lowers = f"; holding {', '.join(harmful)} lowers it" if harmful else ""
        return f"No component matters: holding one at its mean does not raise the loss{lowers}."
    said = ", ".join(f"{name} {found[f'shapley, every step: {name}'].effect:.3f}" for name in ranked)
    first = ranked[0]
    # The largest of several noisy values is no result by itself: its difference to each other one is tested, too.
    close = [name for name in ranked[1:] if not _differ(first, name, found)]
    if close:
        return f"No single component stands out: {first} is not found to differ from {', '.join(close)} (nats: {said})."
    return f"{first} matters most and differs from every other component (nats: {said})."


def _differ(one: str, other: str, found: Mapping[str, Comparison]) -> bool:
    """Return whether a difference of two components was found; each pair is tested in one of the two orders."""
    # `combinations` gives each pair in the order of the components, which is not that of the ranks.
    names = (f"shapley, every step: {one} - {other}", f"shapley, every step: {other} - {one}")
    return any(found[name].found for name in names if name in found)


def _components(subject: PnnSubject) -> list[str]:
    """Return the components of this network; a gate that is the same for all input is none.

    Raises:
        NotApplicableError: the trunk is no refiner.
    """
    trunk = subject.network.config.trunk
    if trunk not in ("refiner", "hierarchical"):
        raise NotApplicableError(
            f"it holds parts of a refiner at their means; this network's trunk is {trunk!r}, which has no proposal "
            "apart from the state."
        )
    return [name for name in COMPONENTS if name != "gate" or has_gate(subject.network)]


def _losses(
    subject: PnnSubject, components: Sequence[str], means: dict[Part, list[Any]], steps: Collection[int]
) -> dict[frozenset[str], Array]:
    """Return the losses (tokens,) with every set of components held at their means at some steps, from 0."""
    found = {}
    for size in range(len(components) + 1):
        for held in combinations(components, size):
            with held_at(subject.network, means, [COMPONENTS[name] for name in held], steps):
                found[frozenset(held)] = final_losses(subject.network, subject.batches)
    return found


def _comparisons(
    components: Sequence[str], shares: Mapping[str, Values], alone: Mapping[str, Values], subject: PnnSubject
) -> list[Comparison]:
    """Test all values, leave-one-out rises, and differences of components over every step, adjusted together."""
    tested: Values = {}
    for scope in shares:
        tested |= {f"shapley, {scope}: {name}": shares[scope][name] for name in components}
        tested |= {f"leave one out, {scope}: {name}": alone[scope][name] for name in components}
    # Components are compared by their values for the same tokens, so the difference is tested as a paired one.
    whole = shares["every step"]
    tested |= {f"shapley, every step: {a} - {b}": whole[a] - whole[b] for a, b in combinations(components, 2)}
    generator, sequences = subject.generator("component_importance"), labelled_places(subject.batches)[1]
    return adjusted([paired(name, values, sequences, generator) for name, values in tested.items()])


def _panel(title: str, kind: str, components: Sequence[str], comparisons: Sequence[Comparison]) -> Panel:
    found = {comparison.name: comparison for comparison in comparisons}
    # Names are "<kind>, <scope>: <component>".
    scopes = list(dict.fromkeys(name.partition(": ")[0].partition(", ")[2] for name in found))
    series = []
    for component in components:
        bars = [found[f"{kind}, {scope}: {component}"].interval for scope in scopes]
        series.append(with_intervals(component, scopes, bars))
    return Panel(
        title=f"{title}, held at its mean", kind="bars", x_label="held at", y_label="rise of the loss (nats)",
        series=series, level=0.0,
    )  # fmt: skip
