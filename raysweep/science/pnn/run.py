"""Run analyses on a subject, and say beforehand how long they will take."""

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
    """An analysis that cannot be made on this network."""

    experiment: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"experiment": self.experiment, "not_applicable": self.reason}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the analyses of these names or aliases, each once; all of them where none is named.

    Raises:
        UsageError: no analysis has such a name.
    """
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
        say: is told what is going on, a line at a time.
        insist: an analysis that cannot be made on this network is an error, and no entry of the result.

    Raises:
        NotApplicableError: under `insist`.
    """
    made: dict[str, Analysis] = {name: registry.build(KIND, name) for name in names}
    started = time.perf_counter()
    subject.predictions()
    passes = sum(analysis.passes(subject) for analysis in made.values())
    seconds = passes * (time.perf_counter() - started)
    tokens = sum(batch.labels.numel() for batch in subject.batches)
    say(f"{len(made)} analyses, {passes} passes over {tokens:,} tokens: about {duration(seconds)}")
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
        if insist:
            raise NotApplicableError(f"--experiment {name}: {error}") from error
        return NotApplicable(experiment=name, reason=str(error))


class Analysis(Protocol):
    """science/pnn/analyses/<name>.py: one experiment on a Plastic Neural Network."""

    aliases: ClassVar[tuple[str, ...]]
    """Other names of it, such as the one in the published code."""

    def passes(self, subject: PnnSubject) -> int:
        """Return how often all held-out text runs through a network: what the estimate of its time is made from."""

    def __call__(self, subject: PnnSubject) -> Finding:
        """Measure; the subject stays as it is.

        Raises:
            NotApplicableError: the network lacks what is measured.
        """
