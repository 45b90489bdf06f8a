"""Measure when predictions settle, and whether harder tokens take more steps.

Difficulty comes from counts of neighbours, not from the network (see `reference`). The published step of convergence,
the first repeat of the argmax, is reported beside the step from which on the prediction stays the same: a prediction
that repeats once may still change later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raysweep.science.pnn.reference import EASY, HARD, matched_classes, members_of
from raysweep.science.pnn.subject import TWINS, PnnSubject
from raysweep.science.pnn.trace import Predictions, predictions
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted, with_intervals
from raysweep.science.statistics.resampling import Ints, beyond_draws, contrast, interval, paired

EFFECT, SETTLED = "permanent step: hard - easy", "permanent step - permuted steps"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ()

    def passes(self, subject: PnnSubject) -> int:
        return 1 + TWINS + len(subject.compared)

    def __call__(self, subject: PnnSubject) -> Finding:
        # Classes depend on text alone, so the same tokens are hard for this network, the untrained and the others.
        horizon = _horizon(subject)
        found = subject.predictions(horizon)
        others = {name: predictions(other, subject.batches) for name, other in subject.compared.items()}
        classes = matched_classes(subject.difficulty(), subject.frequency[found.labels])
        twins = [predictions(twin, subject.batches, horizon) for twin in subject.twins()]
        comparisons = _compared(found, others, twins, classes, subject)
        return Finding(
            experiment="convergence",
            measured="The step from which on the prediction of a masked token stays the same, hard minus easy tokens; "
            "classes by counts of neighbours at equal word frequency, against untrained networks and against the same "
            "predictions with their steps permuted.",
            verdict=_verdict(comparisons, found),
            comparisons=comparisons,
            figures=_figures(found, {"untrained": twins[0], **others}, classes, subject),
            panels=_panels(found, {"untrained": twins[0], **others}, classes, subject),
        )


def _horizon(subject: PnnSubject) -> int:
    """Return the number of steps to run: beyond T only for a network that was trained beyond it."""
    # Training with random depth draws up to 2 T - 1 steps; without it a network never learned to predict after T.
    config = subject.network.config
    return 2 * config.num_steps - 1 if config.random_depth else config.num_steps


def first_repeat(predicted: Ints) -> Ints:
    """Return the published convergence step: the first t >= 1 that repeats the prediction of t - 1, else T; (tokens,).

    Args:
        predicted: (steps + 1, tokens).
    """
    same = predicted[1:] == predicted[:-1]
    # argmax gives the first True, but 0 where there is none.
    return np.where(same.any(0), same.argmax(0) + 1, len(same))


def permanent(predicted: Ints) -> Ints:
    """Return the first step from which on the prediction is that of the last step, (tokens,); 0 is the embedding.

    Args:
        predicted: (steps + 1, tokens).
    """
    # Counted from the end: the last step that differs, plus 1.
    differs = predicted != predicted[-1]
    return np.where(differs.any(0), len(predicted) - differs[::-1].argmax(0), 0)


def published_classes(found: Predictions) -> Ints:
    """Return the published classes (tokens,): 0 right at the embedding, 1 right only at the end, 2 wrong at the end."""
    right = found.correct.astype(bool)
    return np.where(right[0], 0, np.where(right[-1], 1, 2))


def permuted_steps(predicted: Ints, generator: np.random.Generator) -> Ints:
    """Return the predictions with steps 1 to T of each token in random order; that of the embedding stays first."""
    # This null has the same predictions: if settling were only a matter of few different ones, it would settle, too.
    order = generator.permuted(np.tile(np.arange(1, len(predicted))[:, None], predicted.shape[1]), axis=0)
    return np.concatenate([predicted[:1], np.take_along_axis(predicted, order, 0)])


def _compared(
    found: Predictions,
    others: Mapping[str, Predictions],
    twins: Sequence[Predictions],
    classes: Ints,
    subject: PnnSubject,
) -> list[Comparison]:
    generator = subject.generator("convergence")
    hard, easy = classes == HARD, classes == EASY
    # `contrast` tests hard minus easy within sequences. Other networks are compared token by token, on the same masks.
    own, repeat = permanent(found.predicted), first_repeat(found.predicted)
    # One random order for each token; means over thousands of tokens leave little of its chance.
    permuted = permanent(permuted_steps(found.predicted, subject.generator("permuted steps")))
    effects = {EFFECT: own, "first repeat: hard - easy": repeat}
    effects |= {f"{EFFECT}, minus {name}": own - permanent(other.predicted) for name, other in others.items()}
    tested = [
        contrast(name, values.astype(float), hard, easy, found.sequences, generator) for name, values in effects.items()
    ]
    # One difference for each untrained network: the test takes networks as units, not tokens.
    untrained = [permanent(twin.predicted) for twin in twins]
    null = [float(steps[hard].mean() - steps[easy].mean()) for steps in untrained]
    return adjusted([
        *tested,
        beyond_draws(f"{EFFECT}, minus untrained", tested[0].effect, null),
        paired(SETTLED, (own - permuted).astype(float), found.sequences, generator),
    ])  # fmt: skip


def _verdict(comparisons: list[Comparison], found: Predictions) -> str:
    """Say whether hard tokens settle later, which takes three effects that were found.

    Hard tokens settle later than easy ones; by more than in untrained networks, as predictions of low margin change
    more often in any iterated network; and predictions settle earlier than in random order of the steps.
    """
    by_name = {one.name: one for one in comparisons}
    # Effect -> the sign that it must have.
    needed = {EFFECT: 1, f"{EFFECT}, minus untrained": 1, SETTLED: -1}
    effect = by_name[EFFECT].effect
    failed = [name for name, sign in needed.items() if not (by_name[name].found and sign * by_name[name].effect > 0)]
    if not failed:
        said = f"Hard tokens settle {effect:.2f} steps later than easy ones, beyond both nulls"
    else:
        said = f"Not found that hard tokens settle later ({effect:+.2f} steps); not found: {'; '.join(failed)}"
    # At the embedding a masked position knows its place alone; few different predictions there show it.
    distinct = len(np.unique(found.predicted[0]))
    return f"{said}. Different tokens predicted at the embedding: {distinct}."


def _figures(
    found: Predictions, others: Mapping[str, Predictions], classes: Ints, subject: PnnSubject
) -> dict[str, Any]:
    generator = subject.generator("convergence intervals")
    published = published_classes(found)
    # What always guessing the most frequent token would reach, beside the accuracy at the embedding.
    commonest = int(subject.frequency.argmax())
    return {
        "steps": found.steps,
        "embedding": {
            "about": "A masked position holds the mask token and its place, so its prediction depends on the place "
            "alone: tokens that are right here are frequent ones, not easy ones.",
            "accuracy": float(found.correct[0].mean()),
            "accuracy_of_the_commonest_token": float((found.labels == commonest).mean()),
            "different_predictions": len(np.unique(found.predicted[0])),
        },
        "matched_classes": _of_classes(found, classes, generator),
        "published_classes": {
            "about": "Defined by the predictions whose steps are counted: a medium token is wrong at the embedding "
            "and right later, so it can hardly settle at step 1.",
            **_of_classes(found, published, generator),
        },
        "published_classes_of_others": {
            name: _of_classes(other, published_classes(other), generator) for name, other in others.items()
        },
        "matched_classes_of_others": {name: _of_classes(other, classes, generator) for name, other in others.items()},
    }  # fmt: skip


def _of_classes(found: Predictions, classes: Ints, generator: np.random.Generator) -> dict[str, Any]:
    """Return both convergence steps and the stability of each class that has tokens.

    Stability is the share of tokens whose prediction is that of the step before, by step.
    """
    measured = {"first_repeat": first_repeat(found.predicted), "permanent": permanent(found.predicted)}
    stable = (found.predicted[1:] == found.predicted[:-1]).astype(float)
    content: dict[str, Any] = {}
    for name, members in members_of(classes).items():
        content[name] = {"tokens": int(members.sum()), "share": float(members.mean()),
                         "stability": stable[:, members].mean(1).tolist()} | {
            step: vars(interval(values[members].astype(float), found.sequences[members], generator))
            for step, values in measured.items()
        }  # fmt: skip
    return content


def _panels(found: Predictions, others: Mapping[str, Predictions], classes: Ints, subject: PnnSubject) -> list[Panel]:
    generator = subject.generator("convergence panels")
    rows = {"this network": found, **others}
    return [
        Panel(
            title="permanent step, matched classes", kind="bars", x_label="difficulty", y_label="step",
            series=[_bars(name, other, classes, generator) for name, other in rows.items()],
        ),
        Panel(
            title="permanent step, published classes", kind="bars", x_label="class by its own predictions",
            y_label="step", series=[_bars("this network", found, published_classes(found), generator)],
        ),
    ]  # fmt: skip


def _bars(name: str, found: Predictions, classes: Ints, generator: np.random.Generator) -> Series:
    steps = permanent(found.predicted).astype(float)
    means = {
        label: interval(steps[members], found.sequences[members], generator)
        for label, members in members_of(classes).items()
    }
    return with_intervals(name, list(means), list(means.values()))
