"""The search: propose the point of each trial from the results of earlier ones.

A study lives in memory and is built anew from the archive in every session. A sampler is built anew for every point,
with a seed derived from the job's seed and the trial's number. So a proposal follows from the job, the trial's number
and the results so far, in their order, and a resumed sweep draws what an uninterrupted one would have drawn.
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
from raysweep.sweep.failures import Failures
from raysweep.sweep.history import STATES, History, Result, distributions_of
from raysweep.sweep.journal import Journal

REDRAWS = 20
"""How many points of a sampler in a row may be refused, before the last allowed one is taken, or a random one."""
EXPLORATION = 0.1
"""Share of trials whose points are not refused for the failures near them."""
STEPS = 1000
"""Optuna numbers intermediate values by integer steps: here thousandths of a trial's judged compute."""
Key = tuple[tuple[str, str], ...]
"""The values of a point, hashable."""

logger = logging.getLogger(__name__)


class Study:
    """The search of one sweep, for a job that has a space.

    Before the first `ask`, trials of earlier sessions may be added in any order, but their results in the order in
    which they were recorded. After it, trials come by rising numbers.

    Args:
        journal: file to append ended trials to, for optuna-dashboard; None: none.
    """

    def __init__(self, job: Job, journal: Path | None) -> None:
        search = job.spec.search
        assert search is not None and job.space is not None
        self._job, self._space, self._values_of_job = job, job.space, job.spec.resolved()
        self._sampler = registry.build("samplers", search.sampler.name, search.sampler.options)
        self._objectives = (search.minimize,) if isinstance(search.minimize, str) else search.minimize
        # Built at the first `ask`, when all trials of earlier sessions are known and can be sorted by number.
        self._history: History | None = None
        self._points: dict[int, Values] = {}
        self._results: dict[int, Result] = {}
        self._taken: set[Key] = set()
        self._told: list[tuple[Values, tuple[float, ...]]] = []
        self._allowed: dict[Key, bool] = {}
        self._failures = Failures(job.space)
        self._journal = None if journal is None else Journal(journal, self._objectives, distributions_of(job.space))

    def ask(self, trial: int) -> Values | None:
        """Return the point of a new trial, or None if there is nothing left to propose.

        Raises:
            RunError: the job's rules allow hardly any point.
        """
        values = self._propose(trial)
        if values is not None:
            self.adopt(trial, values)
        return values

    def adopt(self, trial: int, values: Mapping[str, Any]) -> None:
        """Note a trial that runs without having been asked for: one of an earlier session, or a replicate."""
        point = dict(values)
        # A sampler can learn nothing from values that are no point of the space, as those of a fork may be.
        if trial in self._points or not self._space.contains(point, self._values_of_job):
            return
        self._points[trial] = point
        self._taken.add(_key(point))
        if self._history is not None:
            self._history.add(trial, point)

    def tell(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        """Note how a trial ended: COMPLETE with its objectives, STOPPED as pruned, DIVERGED or FAILED as a result worse
        than all others; what the cluster lost, or somebody cancelled, is no result."""
        # Once: a trial that failed and was run again would otherwise be two results of one point.
        if record.trial in self._results:
            return
        result = self._results[record.trial] = self._result(record, reports)
        if self._journal is not None:
            self._journal.add(result, record)
        self.adopt(record.trial, record.values)
        if record.trial in self._points:
            if result.failed or result.state != TrialState.FAIL:
                self._failures.add(self._points[record.trial], failed=result.failed)
            objectives = (math.inf,) * len(self._objectives) if result.failed else result.objectives
            if objectives is not None:
                self._told.append((self._points[record.trial], objectives))
            if self._history is not None:
                self._history.end(result)

    def _propose(self, trial: int) -> Values | None:
        # The rules between a job's keys may refuse a point, and no sampler can know them; nor can it see an edge behind
        # which trials fail as sharply as it is.
        avoids = self._avoids_failures(trial)
        allowed, refused = None, list[Values]()
        for again in range(REDRAWS):
            values = self._draw(trial, again, refused)
            if values is None:
                return None
            if self._is_allowed(values):
                if not (avoids and self._failures.expects(values)):
                    return values
                allowed = values
            refused.append(values)
        # What is known of failures may be wrong: a sampler that insists has its way.
        return self._at_random(trial) if allowed is None else allowed

    def _avoids_failures(self, trial: int) -> bool:
        """Return whether a trial's point is drawn anew where trials seem to fail."""
        # Not always: else what failed once would never be tried again.
        draw = random.Random(self._seed("exploration", trial)).random()
        return self._sampler.avoids_failures and draw >= EXPLORATION

    def _at_random(self, trial: int) -> Values:
        """Return a random point that the job's rules allow.

        Raises:
            RunError: they allow hardly any.
        """
        logger.warning("trial %d: the job's rules refused %d points; one is drawn at random", trial, REDRAWS)
        generator = random.Random(self._seed("random", trial))
        for _ in range(DRAWS):
            values = self._space.draw(self._values_of_job, generator)
            if self._is_allowed(values):
                return values
        raise RunError(f"trial {trial}: none of {DRAWS} random points is allowed by the job's rules. Narrow the space.")

    def _draw(self, trial: int, again: int, refused: Sequence[Values] = ()) -> Values | None:
        """Draw a trial's point.

        Args:
            again: how often it was drawn before and refused.
            refused: those points.
        """
        history = self._started()
        # Another seed each time, or the same point would come again. The first one has no such part: adding it would
        # change every draw of sweeps that have begun.
        anew = (again,) if again else ()
        draw = Draw(
            trial=trial, seed=self._seed("sampler", trial, *anew), sequence=self._seed("sequence", *anew),
            space=self._space, job=self._values_of_job, told=self._told, is_open=self._is_open,
        )  # fmt: skip
        proposed = self._sampler.propose(draw)
        if proposed is None:
            return None
        if isinstance(proposed, optuna.samplers.BaseSampler):
            return history.draw(proposed, self._values_of_job, refused)
        # The point itself: parameters whose condition does not hold are left out of it.
        return self._space.complete(self._values_of_job, lambda parameter: proposed[parameter.path])

    def _started(self) -> History:
        """Return the history, built at the first call."""
        if self._history is None:
            # By number, as an uninterrupted sweep adds them; results then in the order in which they were recorded.
            self._history = History(
                self._space, len(self._objectives),
                whole=self._sampler.whole, ranks_stopped=self._sampler.ranks_stopped, memory=self._sampler.memory,
            )  # fmt: skip
            for trial in sorted(self._points):
                self._history.add(trial, self._points[trial])
            for trial, result in self._results.items():
                if trial in self._points:
                    self._history.end(result)
        return self._history

    def _seed(self, *purpose: object) -> int:
        # Samplers hand their seed to numpy, which takes 32 bits.
        return derived_seed(str(self._job.spec.seed), *purpose) % 2**32

    def _is_open(self, values: Mapping[str, Any]) -> bool:
        return _key(values) not in self._taken and self._is_allowed(values)

    def _is_allowed(self, values: Mapping[str, Any]) -> bool:
        """Return whether a trial can have these values: by the space's own rules, and by those between a job's keys."""
        # To check a whole job takes milliseconds, and grids ask for the same points again and again.
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
        state, objectives = STATES.get(record.status, TrialState.FAIL), None
        failed = record.status in ("DIVERGED", "FAILED") and not record.cluster_fault
        if state == TrialState.COMPLETE:
            objectives = tuple(record.objectives[name] for name in self._objectives)
            # NaN cannot be compared: the trial counts as failed by its values. An infinite objective can.
            if any(map(math.isnan, objectives)):
                state, objectives, failed = TrialState.FAIL, None, True
        return Result(
            trial=record.trial, values=record.values, state=state, objectives=objectives,
            reports={round(STEPS * report.share): report.loss for report in reports},
            misses=record.violations if objectives else {}, failed=failed,
        )  # fmt: skip


def _key(values: Mapping[str, Any]) -> Key:
    return tuple(sorted((path, repr(value)) for path, value in values.items()))
