"""Decide which trial of a sweep runs next. Everything follows from the archive, so a killed sweep goes on as if it had
not been killed.

Trials that an earlier session left unfinished come first, in order; then new trials of the search; then trials of
earlier points on more seeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raysweep.contracts import Report
from raysweep.job.identity import job_hash
from raysweep.job.jobfile import Job
from raysweep.records import points
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Proposal, TrialRecord

if TYPE_CHECKING:
    from raysweep.sweep.study import Study


class Agenda:
    """Proposes the trials of one sweep; each is in the archive before it is returned.

    Args:
        study: proposes the values of new trials; None for a job without a space.
    """

    def __init__(self, folder: SweepFolder, job: Job, study: Study | None) -> None:
        self._folder = folder
        self._spec, self._job = job.spec, job_hash(job.spec)
        self._study = study
        self._proposals = folder.proposals()
        self._records = folder.trials()
        self._open = {trial for trial in self._proposals if trial not in self._records}
        """Trials without a final record."""
        self._unfinished = deque(sorted(self._open))
        """Trials of earlier sessions that have not been proposed again."""
        self._resumed: deque[int] = deque()
        """Paused trials that the stopping rule lets go on."""
        self._paused: set[int] = set()
        self._follow_ups: deque[points.FollowUp] = deque()
        # Follow-ups are worked out from all records, and `finished` is asked often: remember that nothing has happened
        # since which could add to them.
        self._looked_ahead = False
        self._exhausted = folder.exhausted()
        self._searched = sum(map(points.is_search, self._proposals.values()))
        self._free = 1
        """All smaller numbers are those of trials."""
        self._replay()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to run, now or later."""
        return not (self._open or self._search_left or self._to_follow())

    @property
    def remaining(self) -> int:
        """Number of trials still to end, as far as is known now: results decide which points run on more seeds."""
        planned = points.planned(self._spec, self._proposals, self._records, exhausted=self._exhausted)
        return planned - len(self._records)

    @property
    def unproposed(self) -> range:
        """Numbers of planned trials of the search that will never be proposed: its sampler has nothing left."""
        search = self._spec.search
        if not self._exhausted or search is None:
            return range(0)
        # Stopping rules that compare a cohort wait for all planned trials unless they know of these.
        last = max((trial for trial, proposal in self._proposals.items() if points.is_search(proposal)), default=0)
        return range(last + 1, search.trials + 1)

    def next(self) -> Proposal | None:
        """Return the next trial to run now, None if there is none until another one has ended."""
        if self._unfinished:
            earlier = self._proposals[self._unfinished.popleft()]
            return self._added(replace(earlier, attempt=earlier.attempt + 1))
        if self._resumed:
            # Its proposal stays as it is: a pause loses no attempt.
            return self._proposals[self._resumed.popleft()]
        return self._searching() or self._following_up()

    def ended(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        """Note a trial's final record, and tell the study of it.

        Args:
            reports: of the trial to its stopping rule, those of earlier sessions included.
        """
        self._records[record.trial] = record
        self._open.discard(record.trial)
        self._paused.discard(record.trial)
        # It may end in the queue: every lane can die after its rule let it go on.
        if record.trial in self._resumed:
            self._resumed.remove(record.trial)
        self._looked_ahead = False
        self._tell(record, reports)

    def paused(self, trial: int) -> None:
        """Put a trial aside until its stopping rule resumes or ends it."""
        self._paused.add(trial)
        # A trial that an earlier session left paused is not to be run again before its rule says so.
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
        """Bring the study to the state in which earlier sessions left theirs."""
        # Results in the order of the archive, which is that in which the samplers of earlier sessions got them.
        reports = self._folder.reports()
        for record in self._records.values():
            self._tell(record, reports.get(record.trial, ()))
        if self._study is not None:
            for proposal in self._of_search(self._unfinished):
                self._study.adopt(proposal.trial, proposal.values)

    def _searching(self) -> Proposal | None:
        if not self._search_left:
            return None
        trial, search = self._next_number(), self._spec.search
        values = self._study.ask(trial) if self._study else {}
        if values is None:
            # In the archive, too: a resumed sweep must not ask a used-up grid again, nor wait for its trials.
            self._folder.exhaust()
            self._exhausted, self._looked_ahead = True, False
            return None
        self._searched += 1
        proposer = search.sampler.name if self._study and search else "job"
        return self._added(
            Proposal(trial=trial, values=values, proposer=proposer, attempt=1, seed=self._spec.seed, job=self._job)
        )

    def _following_up(self) -> Proposal | None:
        following = self._to_follow()
        if not following:
            return None
        new, trial = following.popleft(), self._next_number()
        return self._added(
            Proposal(
                trial=trial, values=new.values, proposer=new.proposer, attempt=1, seed=new.seed, of=new.of,
                job=self._job,
            )
        )  # fmt: skip

    def _to_follow(self) -> deque[points.FollowUp]:
        """Return the points to run on more seeds; none while the search, which comes first, has more to propose."""
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

    def _next_number(self) -> int:
        # Usually the number after the newest. Where the plan of a trial was lost, its number is given out anew.
        while self._free in self._proposals:
            self._free += 1
        return self._free

    def _added(self, proposal: Proposal) -> Proposal:
        # Written before anybody runs it: a trial that leaves a trace must be known to a resumed sweep.
        self._folder.add_proposal(proposal)
        self._proposals[proposal.trial] = proposal
        self._open.add(proposal.trial)
        return proposal
