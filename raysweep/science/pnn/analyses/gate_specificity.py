"""Measure whether it matters which gates are open, and for which token: the pattern is destroyed, the mean kept.

The mean is kept, so that a rise of the loss is not due to gates that are wider or narrower as a whole. Permuting or
levelling within a token tests the dimensions; another token's gates, or each dimension's mean, test the token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from raysweep.contracts import Array, Batch
from raysweep.science.pnn.activity import real_tokens
from raysweep.science.pnn.gate_changes import dropped, inverted, noisy, permuted, swapped, token_mean
from raysweep.science.pnn.interventions import changed
from raysweep.science.pnn.replacing import final_losses, part_means
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.pnn.trace import labelled_places
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted, with_intervals
from raysweep.science.statistics.resampling import paired, share_as_extreme

RATES, WEIGHTS = (0.25, 0.5, 0.75), (0.1, 0.3, 0.5)
"""Shares of gates to drop, and weights of noise."""
PERMUTATIONS, PERMUTATIONS_OF_A_STEP = 20, 5
"""Random orders of dimensions: permuting is the main change, and a single order could be a lucky one."""
MEASURED = (
    "Rise of the loss when the gate's pattern is destroyed, its mean kept, at every step and at each step alone; where "
    "networks to compare with are given, their loss minus this network's. Same masked tokens throughout; null: no rise."
)
EVERY = "every step"
RISE = "rise of the loss (nats)"
DIRECTION = f"inverted - permuted, {EVERY}"
Rises = dict[str, dict[str, Array]]
"""Scope -> condition -> rise of the loss of each masked token, nats, (tokens,)."""
GateChange = Callable[[int, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""(step from 0, gates (batch, tokens, width), real tokens (batch, tokens), generator) -> gates."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ()

    def passes(self, subject: PnnSubject) -> int:
        # Two passes for the intact losses and the gates' means; then one for each change that is drawn once, in every
        # scope, and one for each permutation.
        steps = subject.network.config.num_steps
        once = len(RATES) + len(WEIGHTS) + len(("inverted", "token_mean", "dimension_mean", "swapped"))
        return 2 + once * (steps + 1) + PERMUTATIONS + PERMUTATIONS_OF_A_STEP * steps + len(subject.compared)

    def __call__(self, subject: PnnSubject) -> Finding:
        subject.require_gate()
        # Each rise is that of the same masked token: paired, the spread between tokens drops out.
        intact = final_losses(subject.network, subject.batches)
        changes = _gate_changes(subject)
        steps = range(subject.network.config.num_steps)
        scopes = {EVERY: steps, **{f"step {step + 1}": [step] for step in steps}}
        rises: Rises = {}
        spread = {}
        for scope, of_scope in scopes.items():
            drawn = {name: _draws(subject, name, change, scope, of_scope) - intact for name, change in changes.items()}
            # Repetitions are averaged for each token before the test: they are no further independent tokens.
            rises[scope] = {name: values.mean(0) for name, values in drawn.items()}
            spread[scope] = _spread(drawn["permuted"])
        others = {name: final_losses(other, subject.batches) - intact for name, other in subject.compared.items()}
        return conclude(intact, rises, spread, others, subject)


def conclude(
    intact: Array, rises: Rises, spread: Mapping[str, Any], others: Mapping[str, Array], subject: PnnSubject
) -> Finding:
    """Return the finding that follows from rises of the loss of each masked token.

    Args:
        intact: (tokens,), losses with the gate as it is.
        rises: scope -> condition -> (tokens,).
        spread: scope -> range of the mean rise over permutations.
        others: network to compare with -> its losses minus those of this network, (tokens,).
    """
    tested = {f"{name}, {scope}": values for scope, of_scope in rises.items() for name, values in of_scope.items()}
    # Both keep each token's values and change their order alone; inverting is the order that is furthest off.
    tested[DIRECTION] = rises[EVERY]["inverted"] - rises[EVERY]["permuted"]
    tested |= {f"{name} - this network": values for name, values in others.items()}
    generator, sequences = subject.generator("gate_specificity"), labelled_places(subject.batches)[1]
    comparisons = adjusted([paired(name, values, sequences, generator) for name, values in tested.items()])
    return Finding(
        experiment="gate_specificity",
        measured=MEASURED,
        verdict=verdict(comparisons, list(others)),
        comparisons=comparisons,
        figures={
            "loss": float(intact.mean()),
            "permutations": dict(spread),
            "compared": {name: _form(other) for name, other in subject.compared.items()},
        },
        panels=_panels(comparisons, rises, list(others)),
    )


def verdict(comparisons: list[Comparison], others: list[str]) -> str:
    """Say whether it matters which dimensions are open, and for which token.

    Which dimensions: permuting them, or levelling them within a token, raises the loss. For which token: the gates of
    another token, or the mean gate of each dimension, raise it.
    """
    found = {comparison.name: comparison for comparison in comparisons}
    dimensions = [name for name in ("permuted", "token_mean") if found[f"{name}, {EVERY}"].above]
    tokens = [name for name in ("swapped", "dimension_mean") if found[f"{name}, {EVERY}"].above]
    said = [
        _matters("which dimensions are open", dimensions, found),
        _matters("for which token they are", tokens, found),
        _direction(found[DIRECTION]),
        *(_against(name, found[f"{name} - this network"]) for name in others),
    ]
    return " ".join(said)


def _matters(what: str, costly: list[str], found: Mapping[str, Comparison]) -> str:
    if not costly:
        return f"It is not found to matter {what}."
    return (
        f"It matters {what}: " + ", ".join(f"{name} +{found[f'{name}, {EVERY}'].effect:.3f}" for name in costly) + "."
    )


def _direction(comparison: Comparison) -> str:
    if comparison.above:
        return "Inverting costs more than permuting: the order of the gates is used."
    if comparison.below:
        return "Inverting costs less than permuting."
    return "Inverting is not found to differ from permuting."


def _against(name: str, comparison: Comparison) -> str:
    if not comparison.found:
        return f"{name} is not found to differ from this network."
    word = "worse" if comparison.above else "better"
    # Resampled sequences cannot tell how far two training runs of one network differ: the sentence says so.
    return f"{name} is {word} by {abs(comparison.effect):.3f} nats (one training run each)."


def _gate_changes(subject: PnnSubject) -> dict[str, GateChange]:
    """Return all changes of the gates by the names of their conditions."""
    # The mean of a gate differs between steps, so each step has a mean of its own.
    means = part_means(subject.network, "gate", subject.batches)
    return {
        **{f"dropped {rate:.0%}": partial(_dropped, rate) for rate in RATES},
        **{f"noisy {weight:.0%}": partial(_noisy, weight) for weight in WEIGHTS},
        "permuted": lambda step, gates, real, generator: permuted(gates, generator),
        "inverted": lambda step, gates, real, generator: inverted(gates),
        "token_mean": lambda step, gates, real, generator: token_mean(gates),
        "dimension_mean": lambda step, gates, real, generator: means[step].expand_as(gates),
        "swapped": lambda step, gates, real, generator: swapped(gates, real, generator),
    }


def _dropped(rate: float, step: int, gates: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> Any:
    return dropped(gates, rate, generator)


def _noisy(weight: float, step: int, gates: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> Any:
    return noisy(gates, weight, generator)


def _draws(subject: PnnSubject, name: str, change: GateChange, scope: str, steps: Collection[int]) -> Array:
    """Return the losses of each repetition of a condition, (repetitions, tokens)."""
    # Other changes are not repeated: their draws are averaged over all tokens and dimensions already.
    count = 1 if name != "permuted" else PERMUTATIONS if scope == EVERY else PERMUTATIONS_OF_A_STEP
    # A generator for each condition and scope, so that none depends on which others ran before it.
    seeds = subject.generator(f"gate_specificity {name} {scope}").integers(2**62, size=count)
    return np.stack([_losses(subject, change, steps, torch.Generator().manual_seed(int(seed))) for seed in seeds])


def _losses(subject: PnnSubject, change: GateChange, steps: Collection[int], generator: torch.Generator) -> Array:
    """Return the loss of each masked token with the gates changed at some steps, (tokens,)."""
    return np.concatenate([_of_batch(subject.network, batch, change, steps, generator) for batch in subject.batches])


def _of_batch(
    network: Any, batch: Batch, change: GateChange, steps: Collection[int], generator: torch.Generator
) -> Array:  # fmt: skip
    real = real_tokens(batch)

    def at_steps(step: int, gates: torch.Tensor) -> torch.Tensor:
        return change(step, gates, real, generator) if step in steps else gates

    with changed(network, "gate", at_steps):
        return final_losses(network, [batch])


def _spread(drawn: Array) -> dict[str, float]:
    """Return the range of the mean rise over permutations, and the p-value of the intact pattern.

    Args:
        drawn: (repetitions, tokens), rises of the loss.
    """
    # The null: the intact pattern is one of the permuted ones. It has a rise of 0, and the p-value is the share of
    # patterns with at most that.
    rises = drawn.mean(1)
    return {
        "count": len(rises), "lowest": float(rises.min()), "highest": float(rises.max()),
        "p_value": share_as_extreme(0.0, -rises),
    }  # fmt: skip


def _form(network: Any) -> dict[str, Any]:
    """Return in what a network that is compared differs."""
    return {"trunk": network.config.trunk, "gate": network.config.gate, "num_steps": network.config.num_steps}


def _panels(comparisons: list[Comparison], rises: Rises, others: list[str]) -> list[Panel]:
    found = {comparison.name: comparison for comparison in comparisons}
    conditions, steps = list(rises[EVERY]), [scope for scope in rises if scope != EVERY]
    number = list(range(1, len(steps) + 1))
    panels = [
        _bars("Destroyed at every step, mean kept", {name: found[f"{name}, {EVERY}"] for name in conditions}),
        Panel(
            title="Destroyed at one step alone", kind="lines", x_label="step", y_label=RISE, level=0.0,
            series=[
                Series(name=name, x=number, y=[found[f"{name}, {step}"].effect for step in steps])
                for name in conditions
            ],
        ),
    ]  # fmt: skip
    # Other networks differ by a training run, not by a change of the gate: they have a panel of their own.
    if others:
        panels.append(_bars("Other networks", {name: found[f"{name} - this network"] for name in others}))
    return panels


def _bars(title: str, bars: Mapping[str, Comparison]) -> Panel:
    return Panel(
        title=title, kind="bars", x_label="", y_label=RISE, level=0.0,
        series=[with_intervals("loss", list(bars), [bar.interval for bar in bars.values()])],
    )  # fmt: skip
