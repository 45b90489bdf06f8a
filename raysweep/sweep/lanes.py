"""The lanes of a sweep: their worker groups, the trial that each one is running, and the lanes that are gone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from raysweep.job.plan import TrialPlan


@dataclass(kw_only=True)
class Assignment:
    """A trial on a lane."""

    sequence: int
    """Grows by one with every assignment of the lane."""
    trial: int
    plan: str
    """TrialPlan as JSON."""
    group: str
    """The worker group that runs it: the first one, or the latest that took its place."""
    over: bool = False
    """The trial has ended, or has been handed back."""


@dataclass(kw_only=True)
class Lanes:
    """All lanes of a sweep, by name. A lane is known from the first call of its workers on."""

    expected: int = 0
    """How many lanes serve trials that any lane may run; 0: not said yet, or each trial has a lane of its own."""
    _assignments: dict[str, Assignment] = field(default_factory=dict)
    """The latest assignment of each lane."""
    _groups: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The worker groups of each lane, the newest last."""
    _retired: set[str] = field(default_factory=set)
    _dead: dict[str, str] = field(default_factory=dict)
    """Lanes that Ray will not start again -> why."""

    def is_replaced(self, lane: str, group: str) -> bool:
        """Note the group of a worker that asks for work; return whether a newer group has taken its place."""
        # A group is new when one of its workers first asks. All older groups are lost then: Ray starts a lane's workers
        # again only together.
        groups = self._groups[lane]
        if group not in groups:
            groups.append(group)
        return group != groups[-1]

    def current(self, lane: str) -> Assignment | None:
        """Return the assignment that a lane is working on."""
        latest = self._assignments.get(lane)
        return None if latest is None or latest.over else latest

    def assign(self, lane: str, group: str, plan: TrialPlan) -> Assignment:
        """Give a trial to a lane that has none."""
        # The number tells the ranks apart that have finished the assignment before from those that have not.
        before = self._assignments.get(lane)
        sequence = 0 if before is None else before.sequence + 1
        self._assignments[lane] = Assignment(sequence=sequence, trial=plan.trial, plan=plan.to_json(), group=group)
        return self._assignments[lane]

    def end(self, lane: str, sequence: int) -> Assignment | None:
        """Mark an assignment as over and return it; None if it was over already."""
        # Rank 0 of a group that was replaced may say so late, when the trial has ended or runs in a newer assignment.
        latest = self._assignments[lane]
        if latest.sequence != sequence or latest.over:
            return None
        latest.over = True
        return latest

    def lose(self, lane: str) -> None:
        """Note that the workers of a lane are lost: the group that it had is replaced, by none as yet."""
        self._groups[lane].append("")

    def retire(self, lane: str) -> None:
        """Let the workers of a lane return."""
        self._retired.add(lane)

    def is_retired(self, lane: str) -> bool:
        return lane in self._retired

    def died(self, lane: str, reason: str) -> None:
        """Note that Ray will not start a lane again."""
        self._dead[lane] = reason

    def why_none(self, lane: str | None) -> str | None:
        """Return why no lane can run a trial any more, None if one can.

        Args:
            lane: the only lane that may run it; None: any.
        """
        if lane is not None:
            return self._dead.get(lane)
        # With `expected` 0 the number of lanes is not known yet, or no lane serves a trial that any may run.
        all_dead = self.expected and len(self._dead) >= self.expected
        return next(iter(self._dead.values())) if all_dead else None
