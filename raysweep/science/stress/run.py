"""Run stress protocols one after the other, and keep each result at once, so that an interruption loses little."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raysweep.science.stress.alternation import Turn, alternation
from raysweep.science.stress.conflict import Conflict, conflict
from raysweep.science.stress.damage import Arm, damage
from raysweep.science.stress.load import after_baseline
from raysweep.science.stress.protocols import PROTOCOLS
from raysweep.science.stress.subject import StressOptions, StressSubject

TIMED_STEPS = 3
"""Training steps that the time of a step is estimated from."""


@dataclass(kw_only=True)
class StressResults:
    """Results so far; those of a protocol that has not begun are empty."""

    a: str
    b: str
    question: StressOptions
    heads: int
    alternation: list[Turn] = field(default_factory=list)
    damage: list[Arm] = field(default_factory=list)
    conflict: Conflict | None = None
    unfinished: list[str] = field(default_factory=list)
    """Protocols that have not been measured to their end."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class StressWork:
    """Work that protocols will take."""

    steps: int
    evaluations: int
    """Number of passes over one held-out text."""
    seconds: float


def stress_of(subject: StressSubject, protocols: Sequence[str]) -> StressResults:
    """Return an empty result with all chosen protocols unfinished, in the order of PROTOCOLS."""
    return StressResults(
        a=subject.a.name, b=subject.b.name, question=subject.question, heads=subject.head_map.active,
        unfinished=[name for name in PROTOCOLS if name in protocols],
    )  # fmt: skip


def work_of(subject: StressSubject, protocols: Sequence[str]) -> StressWork:
    """Count the steps and evaluations of protocols, and estimate their time from a few steps and one evaluation."""
    question = subject.question
    arms = question.draws + len(("dense", "highest", "lowest"))
    # Conflict trains nothing. Every network is measured on both texts, but damage on A alone: whole, and each arm at
    # once and after learning. Conflict measures the whole network twice, once as the arm `none`.
    steps = {"alternation": question.rounds * question.steps, "damage": arms * question.steps}
    evaluations = {"alternation": 2 * (1 + question.rounds), "damage": 1 + 2 * arms, "conflict": 2 * 5}
    to_train = question.baseline + sum(steps.get(name, 0) for name in protocols)
    to_measure = sum(evaluations[name] for name in protocols)
    # A copy is trained here, so that timing changes nothing of what is measured later.
    state = subject.state()
    started = time.perf_counter()
    subject.train(state, subject.a.train, "timing", TIMED_STEPS)
    trained = time.perf_counter()
    subject.losses(state, subject.a)
    step, evaluation = (trained - started) / TIMED_STEPS, time.perf_counter() - trained
    return StressWork(steps=to_train, evaluations=to_measure, seconds=to_train * step + to_measure * evaluation)


def run(subject: StressSubject, found: StressResults, say: Callable[[str], None]) -> None:
    """Run the unfinished protocols and add their results to `found` as they come.

    Args:
        say: called with a line of progress at a time.

    Raises:
        DivergedError: the loss of the undamaged network is not finite, or its baseline training diverged.
    """
    # Every protocol begins with this one network, so that each has the same numbers alone as among the others.
    subject = after_baseline(subject)
    for name in list(found.unfinished):
        if name == "alternation":
            for turn in alternation(subject):
                found.alternation.append(turn)
                say(f"alternation: turn {turn.turn} of {subject.question.rounds}")
        elif name == "damage":
            for arm in damage(subject):
                found.damage.append(arm)
                say(f"damage: {arm.arm}")
        else:
            found.conflict = conflict(subject)
            say("conflict: both rankings")
        # Removed only now: an interrupted protocol is to be run again from its beginning.
        found.unfinished.remove(name)
