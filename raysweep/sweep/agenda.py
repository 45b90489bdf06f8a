"""What runs next in a sweep. All of it follows from the archive: a sweep that is killed goes on as if nothing had been.

What an earlier session left unfinished comes first, in order; then new trials of the search; then points on more seeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raysweep.contracts import Report
from raysweep.job.jobfile import Job
from raysweep.records import points
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Proposal, TrialRecord

if TYPE_CHECKING:
    from raysweep.sweep.study import Study


class Agenda:
    """Proposes the trials of one sweep; each is in the archive before it is returned.

    Args:
        study: proposes values; None for a job without a space.
    """

    def __init__(self, folder: SweepFolder, job: Job, study: Study | None) -> None:
        self._folder = folder
        self._spec = job.spec
        self._study = study
        self._proposals = folder.proposals()
        self._records = folder.trials()
        self._open = {trial for trial in self._proposals if trial not in self._records}
        self._unfinished = deque(sorted(self._open))
        self._resumed: deque[int] = deque()
        self._paused: set[int] = set()
        self._follow_ups: deque[points.FollowUp] = deque()
        self._looked_ahead = False
        """Nothing has happened since that could add to the follow-ups."""
        self._exhausted = folder.exhausted()
        self._searched = sum(map(points.is_search, self._proposals.values()))
        self._newest = max(self._proposals, default=0)
        self._replay()

    @property
    def finished(self) -> bool:
        """Whether there is nothing to run, now or later."""
        return not (self._open or self._search_left or self._to_follow())

    @property
    def remaining(self) -> int:
        """Trials still to end, as far as can be told now."""
        planned = points.planned(self._spec, self._proposals, self._records, exhausted=self._exhausted)
        return planned - len(self._records)

    @property
    def unproposed(self) -> range:
        """Numbers of planned trials of the search that will never be proposed: its sampler has nothing left."""
        search = self._spec.search
        if not self._exhausted or search is None:
            return range(0)
        last = max((trial for trial, proposal in self._proposals.items() if points.is_search(proposal)), default=0)
        return range(last + 1, search.trials + 1)

    def next(self) -> Proposal | None:
        """Return the next trial to run now; None: there is none, as long as no other one has ended."""
        if self._unfinished:
            earlier = self._proposals[self._unfinished.popleft()]
            return self._added(replace(earlier, attempt=earlier.attempt + 1))
        if self._resumed:
            return self._proposals[self._resumed.popleft()]  # a pause is no attempt that was lost
        return self._searching() or self._following_up()

    def ended(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        """Take note of a trial's final record, and of what it had reported to its stopping rule."""
        self._records[record.trial] = record
        self._open.discard(record.trial)
        self._paused.discard(record.trial)
        if record.trial in self._resumed:
            self._resumed.remove(record.trial)
        self._looked_ahead = False
        self._tell(record, reports)

    def paused(self, trial: int) -> None:
        """Put a trial aside until its stopping rule resumes or ends it; also one that an earlier session left so."""
        self._paused.add(trial)
        if trial in self._unfinished:
            self._unfinished.remove(trial)

    def resumed(self, trial: int) -> None:
        """Let a paused trial run next."""
        self._paused.remove(trial)
        self._resumed.append(trial)

    # Inside.

    @property
    def _search_left(self) -> int:
        """Trials that the search has still to propose."""
        planned = self._spec.search.trials if self._spec.search else 1
        return 0 if self._exhausted else max(0, planned - self._searched)

    def _replay(self) -> None:
        """Tell the study what earlier sessions told theirs."""
        reports = self._folder.reports()
        for record in self._records.values():
            self._tell(record, reports.get(record.trial, ()))
        if self._study is not None:
            for proposal in self._of_search(self._unfinished):
                self._study.adopt(proposal.trial, proposal.values)

    def _searching(self) -> Proposal | None:
        if not self._search_left:
            return None
        trial, search = self._newest + 1, self._spec.search
        values = self._study.ask(trial) if self._study else {}
        if values is None:
            self._folder.exhaust()
            self._exhausted, self._looked_ahead = True, False
            return None
        self._searched += 1
        proposer = search.sampler.name if self._study and search else "job"
        return self._added(Proposal(trial=trial, values=values, proposer=proposer, attempt=1, seed=self._spec.seed))

    def _following_up(self) -> Proposal | None:
        following = self._to_follow()
        if not following:
            return None
        new, trial = following.popleft(), self._newest + 1
        return self._added(
            Proposal(trial=trial, values=new.values, proposer=new.proposer, attempt=1, seed=new.seed, of=new.of)
        )

    def _to_follow(self) -> deque[points.FollowUp]:
        """Return what is to be run on more seeds; nothing while the search has more to propose: it comes first."""
        if not (self._follow_ups or self._looked_ahead or self._search_left):
            searched = not self._of_search(self._open)
            self._follow_ups.extend(points.due(self._spec, self._proposals, self._records, searched=searched))
            self._looked_ahead = True
        return self._follow_ups

    def _tell(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        if self._study is not None and points.is_search(self._proposals[record.trial]):
            self._study.tell(record, reports)

    def _of_search(self, trials: Iterable[int]) -> list[Proposal]:
        return [self._proposals[trial] for trial in trials if points.is_search(self._proposals[trial])]

    def _added(self, proposal: Proposal) -> Proposal:
        self._folder.add_proposal(proposal)
        self._proposals[proposal.trial] = proposal
        self._newest = max(self._newest, proposal.trial)
        self._open.add(proposal.trial)
        return proposal
