"""The search: proposes the point of each trial, and is told how each ended.

It lives in memory and is built anew from the archive in every session. A sampler is built anew for every point, with a
seed that follows from the job's seed and the trial's number; so what is proposed follows from the job, the number and
what was told before, in the order in which it was told, and a resumed sweep draws what an uninterrupted one would have.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from raysweep.contracts import Draw, Report
from raysweep.errors import RunError, SpecError
from raysweep.job import registry
from raysweep.job.jobfile import Job
from raysweep.job.plan import derived_seed
from raysweep.job.space import DRAWS, Values
from raysweep.records.schema import TrialRecord
from raysweep.sweep.history import STATES, History, Result, distributions_of
from raysweep.sweep.journal import Journal

REDRAWS = 20
"""Points of a sampler in a row that the job's rules may refuse before one is drawn at random among those they allow."""
STEPS = 1000
"""A report's place among a trial's intermediate values is its share of the judged compute in so many parts."""
Key = tuple[tuple[str, str], ...]

logger = logging.getLogger(__name__)


class Study:
    """The search of one sweep, for a job that has a space.

    What earlier sessions proposed and finished may come in any order before the first `ask`, but results in the order
    in which they were recorded. After it, trials come by rising numbers.

    Args:
        journal: file to append ended trials to, for optuna-dashboard; None: none.
    """

    def __init__(self, job: Job, journal: Path | None) -> None:
        search = job.spec.search
        assert search is not None and job.space is not None
        self._job, self._space, self._values_of_job = job, job.space, job.spec.resolved()
        self._sampler = registry.build("samplers", search.sampler.name, search.sampler.options)
        self._objectives = (search.minimize,) if isinstance(search.minimize, str) else search.minimize
        self._history: History | None = None
        self._points: dict[int, Values] = {}
        self._results: dict[int, Result] = {}
        self._taken: set[Key] = set()
        self._told: list[tuple[Values, tuple[float, ...]]] = []
        self._allowed: dict[Key, bool] = {}
        self._journal = None if journal is None else Journal(journal, self._objectives, distributions_of(job.space))

    def ask(self, trial: int) -> Values | None:
        """Return the point of a new trial, or None where there is nothing left to propose.

        Raises:
            RunError: hardly any point is allowed by the job's rules.
        """
        values = self._propose(trial)
        if values is not None:
            self.adopt(trial, values)
        return values

    def adopt(self, trial: int, values: Mapping[str, Any]) -> None:
        """Take note of a trial that runs without having been asked for: of an earlier session, or a replicate.

        Values that are no point of the space, as those of a fork may be, are nothing that a sampler could learn from.
        """
        point = dict(values)
        if trial in self._points or not self._space.contains(point, self._values_of_job):
            return
        self._points[trial] = point
        self._taken.add(_key(point))
        if self._history is not None:
            self._history.add(trial, point)

    def tell(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        """Take note of how a trial ended, once: COMPLETE with its objectives, STOPPED as pruned, others as failed."""
        if record.trial in self._results:
            return
        result = self._results[record.trial] = self._result(record, reports)
        if self._journal is not None:
            self._journal.add(result, record)
        self.adopt(record.trial, record.values)
        if record.trial in self._points:
            if result.objectives is not None:
                self._told.append((self._points[record.trial], result.objectives))
            if self._history is not None:
                self._history.end(result)

    def _propose(self, trial: int) -> Values | None:
        for again in range(REDRAWS):
            values = self._draw(trial, again)
            if values is None or self._is_allowed(values):
                return values
        logger.warning("trial %d: the job's rules refused %d points; one is drawn at random", trial, REDRAWS)
        generator = random.Random(self._seed("random", trial))
        for _ in range(DRAWS):
            values = self._space.draw(self._values_of_job, generator)
            if self._is_allowed(values):
                return values
        raise RunError(f"trial {trial}: none of {DRAWS} random points is allowed by the job's rules. Narrow the space.")

    def _draw(self, trial: int, again: int) -> Values | None:
        """Draw a trial's point, for the first time or once more."""
        history = self._started()
        anew = (again,) if again else ()
        draw = Draw(
            trial=trial, seed=self._seed("sampler", trial, *anew), sequence=self._seed("sequence", *anew),
            space=self._space, job=self._values_of_job, told=self._told, is_open=self._is_open,
        )  # fmt: skip
        proposed = self._sampler.propose(draw)
        if proposed is None:
            return None
        if isinstance(proposed, optuna.samplers.BaseSampler):
            return history.draw(proposed, self._values_of_job)
        return self._space.complete(self._values_of_job, lambda parameter: proposed[parameter.path])

    def _started(self) -> History:
        """Return the history; what was told before the first point is asked for enters it by number, then by result."""
        if self._history is None:
            self._history = History(self._space, len(self._objectives), whole=self._sampler.whole)
            for trial in sorted(self._points):
                self._history.add(trial, self._points[trial])
            for trial, result in self._results.items():
                if trial in self._points:
                    self._history.end(result)
        return self._history

    def _seed(self, *purpose: object) -> int:
        return derived_seed(str(self._job.spec.seed), *purpose) % 2**32

    def _is_open(self, values: Mapping[str, Any]) -> bool:
        return _key(values) not in self._taken and self._is_allowed(values)

    def _is_allowed(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial can have these values: by the space's own rules, and by those between keys of a job."""
        key = _key(values)
        if key not in self._allowed:
            self._allowed[key] = not self._space.missed(values, self._values_of_job) and self._is_a_job(values)
        return self._allowed[key]

    def _is_a_job(self, values: Mapping[str, Any]) -> bool:
        try:
            self._job.with_values(values)
        except SpecError:
            return False
        return True

    def _result(self, record: TrialRecord, reports: Sequence[Report]) -> Result:
        state, objectives, diverged = STATES.get(record.status, TrialState.FAIL), None, record.status == "DIVERGED"
        if state == TrialState.COMPLETE:
            objectives = tuple(record.objectives[name] for name in self._objectives)
            if any(map(math.isnan, objectives)):
                state, objectives, diverged = TrialState.FAIL, None, True
        return Result(
            trial=record.trial, values=record.values, state=state, objectives=objectives,
            reports={round(STEPS * report.share): report.loss for report in reports},
            misses=record.violations if objectives else {}, diverged=diverged,
        )  # fmt: skip


def _key(values: Mapping[str, Any]) -> Key:
    return tuple(sorted((path, repr(value)) for path, value in values.items()))
