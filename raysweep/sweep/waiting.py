"""The trials that are on no lane: those that could run now, and those that wait for a phase which another one runs.

Nothing here looks at all trials. Each is known by the phase that it needs next, and is looked at again when somebody
claims, finishes or gives up that phase.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from raysweep.contracts.events import TrialReleased, TrialWaiting
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.sweep.attempts import Attempts
from raysweep.sweep.claims import Claims

News = TrialWaiting | TrialReleased


@dataclass(kw_only=True)
class DispatchedTrial:
    """A trial that has not ended."""

    plan: TrialPlan
    phases: list[PhasePlan]
    lane: str | None
    """The only lane that may run it; None: any."""
    place: int
    """Trials are given out in the order in which they were submitted."""
    attempts: Attempts
    passed: int = 0
    """How many of its first phases are known to be done."""
    waits_for: str | None = None
    """Key of the phase of another trial that it waits for."""

    @property
    def number(self) -> int:
        return self.plan.trial


@dataclass(kw_only=True)
class WaitingTrials:
    """All trials that are on no lane."""

    claims: Claims
    _needing: defaultdict[str, dict[int, DispatchedTrial]] = field(default_factory=lambda: defaultdict(dict))
    """Key of a phase -> the trials that need it next."""
    _ready: defaultdict[str | None, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Lane -> a heap of place and number of the trials that it alone may run; None: that any may run. A trial that
    waits or runs by now stays in it until it comes up."""
    _trials: dict[int, DispatchedTrial] = field(default_factory=dict)
    _blocked: int = 0

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[DispatchedTrial]:
        return iter(list(self._trials.values()))

    @property
    def blocked(self) -> int:
        """Number of trials that wait for a phase of another one."""
        return self._blocked

    def add(self, trial: DispatchedTrial) -> list[News]:
        """Take in a trial; return what is new about it."""
        self._trials[trial.number] = trial
        return self._place(trial)

    def discard(self, trial: DispatchedTrial) -> None:
        """Forget a trial that runs or has ended."""
        if self._trials.pop(trial.number, None) is not None:
            self._blocked -= trial.waits_for is not None
            trial.waits_for = None
            if (following := self._following(trial)) is not None:
                self._needing[following.key].pop(trial.number, None)

    def changed(self, key: str) -> list[News]:
        """Look again at the trials that need a phase, which was claimed, finished or given up; return what is new."""
        needing = self._needing.pop(key, {})
        return [news for trial in needing.values() for news in self._place(trial)]

    def first_ready(self, lane: str) -> DispatchedTrial | None:
        """Return the trial that a lane may run, of several the one that was submitted first."""
        found = [trial for queue in (None, lane) if (trial := self._first_of(queue)) is not None]
        return min(found, key=lambda trial: trial.place, default=None)

    def _first_of(self, lane: str | None) -> DispatchedTrial | None:
        heap = self._ready[lane]
        while heap:
            place, number = heap[0]
            trial = self._trials.get(number)
            # A trial that was paused in between was submitted anew, and has another place.
            if trial is not None and trial.place == place and trial.waits_for is None:
                return trial
            heapq.heappop(heap)
        return None

    def _place(self, trial: DispatchedTrial) -> list[News]:
        following = self._following(trial)
        blocked = following is not None and self.claims.is_taken(following.key, trial.number)
        if following is not None:
            self._needing[following.key][trial.number] = trial
        before, trial.waits_for = trial.waits_for, following.key if blocked and following else None
        self._blocked += (trial.waits_for is not None) - (before is not None)
        if trial.waits_for is None:
            heapq.heappush(self._ready[trial.lane], (trial.place, trial.number))
            return [] if before is None else [TrialReleased(trial=trial.number)]
        assert following is not None
        if trial.waits_for == before:
            return []
        return [TrialWaiting(trial=trial.number, phase=following.kind, cycle=following.cycle)]

    def _following(self, trial: DispatchedTrial) -> PhasePlan | None:
        """Return the first phase of a trial that is not done; None where no other trial could be running it."""
        # The list also holds phases that a halted trial skips, so for such a trial this is a guess: the claim that it
        # makes when it runs decides.
        if not self.claims.sharing:
            return None
        while trial.passed < len(trial.phases) and self.claims.is_done(trial.phases[trial.passed].key):
            trial.passed += 1
        return trial.phases[trial.passed] if trial.passed < len(trial.phases) else None
