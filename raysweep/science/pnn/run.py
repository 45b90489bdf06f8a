"""Run analyses on a network, and estimate beforehand how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from raysweep.errors import NotApplicableError, UsageError, known_names_hint
from raysweep.job import registry
from raysweep.reports.wording import duration
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.statistics.finding import Finding

KIND = "analyses"


@dataclass(frozen=True, kw_only=True)
class NotApplicable:
    """The result of an analysis that this network does not allow."""

    experiment: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"experiment": self.experiment, "not_applicable": self.reason}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the names of the analyses of these names or aliases, each once; all analyses if none is named.

    Raises:
        UsageError: no analysis has such a name.
    """
    # Aliases are read from the classes: every analysis is imported, though none is built.
    known = registry.available(KIND)
    by_name = {name: name for name in known}
    for name in known:
        by_name |= dict.fromkeys(registry.load(KIND, name).aliases, name)
    for name in names:
        if name not in by_name:
            raise UsageError(f"--experiment: {known_names_hint(name, by_name)}")
    return list(dict.fromkeys(by_name[name] for name in names)) or known


def run_analyses(
    subject: PnnSubject, names: Sequence[str], say: Callable[[str], None], *, insist: bool
) -> list[Finding | NotApplicable]:
    """Run analyses one after the other.

    Args:
        say: called with a line of progress at a time.
        insist: raise where an analysis does not apply to this network, instead of returning `NotApplicable`.

    Raises:
        NotApplicableError: an analysis does not apply, under `insist`.
    """
    made: dict[str, Analysis] = {name: registry.build(KIND, name) for name in names}
    # All analyses are made of passes over the same text, so one pass gives the time of all. What is done between
    # passes, such as resampling, is not in it: the estimate is a lower one.
    started = time.perf_counter()
    subject.predictions()
    passes = sum(analysis.passes(subject) for analysis in made.values())
    seconds = passes * (time.perf_counter() - started)
    tokens = sum(batch.labels.numel() for batch in subject.batches)
    say(f"{len(made)} analyses, {passes} passes over {tokens:,} tokens: about {duration(seconds)}")
    # One after the other: each takes all the cores that torch is given.
    found: list[Finding | NotApplicable] = []
    for number, (name, analysis) in enumerate(made.items(), 1):
        started = time.perf_counter()
        found.append(_run(name, analysis, subject, insist=insist))
        say(f"{number}/{len(made)} {name}: {time.perf_counter() - started:.1f} s")
    return found


def _run(name: str, analysis: Analysis, subject: PnnSubject, *, insist: bool) -> Finding | NotApplicable:
    try:
        return analysis(subject)
    except NotApplicableError as error:
        # An analysis that was named must not be left out silently; among all of them, others are still of use.
        if insist:
            raise NotApplicableError(f"--experiment {name}: {error}") from error
        return NotApplicable(experiment=name, reason=str(error))


class Analysis(Protocol):
    """An experiment on a Plastic Neural Network: `Analysis` in science/pnn/analyses/<name>.py."""

    aliases: ClassVar[tuple[str, ...]]
    """Other names of the analysis, such as the one in the published code."""

    def passes(self, subject: PnnSubject) -> int:
        """Return how many passes over all held-out text the analysis takes, for the estimate of its time."""

    def __call__(self, subject: PnnSubject) -> Finding:
        """Return what the analysis finds; the subject is left unchanged.

        Raises:
            NotApplicableError: the network lacks a part that the analysis measures.
        """
