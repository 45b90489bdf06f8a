"""Points of a search on several seeds: the trials that ran them, which point is best, and which trials are still due.

The search runs each point on the job's own seed. With `search.seeds`, its best points are replicated on more seeds, and
the point with the best mean is confirmed on fresh seeds: the best of many is partly the luckiest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from raysweep.job.spec import JobSpec
from raysweep.records import objectives
from raysweep.records.schema import DERIVED, Proposal, TrialRecord

Proposals = Mapping[int, Proposal]
Records = Mapping[int, TrialRecord]


@dataclass(frozen=True, kw_only=True)
class Point:
    """Values that the search tried, and the trials that completed with them."""

    trial: int
    """The trial of the search that found it. Equal values that the sampler proposes again are the same point."""
    searched: TrialRecord
    """The final record of this trial."""
    by_seed: dict[int, TrialRecord]
    """The search's trial and its replicates, by seed."""
    fresh: dict[int, TrialRecord] = field(default_factory=dict)
    """Its confirmations, by seed."""

    @property
    def objectives(self) -> dict[str, float]:
        """Means over `by_seed`."""
        return means([record.objectives for record in self.by_seed.values()])

    @property
    def violations(self) -> dict[str, float]:
        """Means over `by_seed`."""
        return means([record.violations for record in self.by_seed.values()])


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """A trial that should run a point on another seed."""

    of: int
    values: dict[str, Any]
    proposer: Literal["replicate", "confirmation"]
    seed: int


def is_search(proposal: Proposal) -> bool:
    """Return whether the search's sampler proposed a trial."""
    return proposal.proposer not in DERIVED


def gather(proposals: Proposals, records: Records) -> list[Point]:
    """Return every point that the search completed, in the order of its trials."""
    points: dict[str, Point] = {}
    complete = [
        (proposals[trial], record)
        for trial, record in sorted(records.items())
        if record.status == "COMPLETE" and trial in proposals
    ]
    # In order of trials, so that the first of several trials with equal values gives the point its number.
    for proposal, record in complete:
        if is_search(proposal):
            new = Point(trial=proposal.trial, searched=record, by_seed={proposal.seed: record})
            points.setdefault(_identity(proposal.values), new)
    # A second pass: a replicate belongs to its point by its values, and those must all be known before.
    for proposal, record in complete:
        point = points.get(_identity(proposal.values))
        if point is not None and proposal.proposer == "replicate":
            point.by_seed[proposal.seed] = record
        elif point is not None and proposal.proposer == "confirmation":
            point.fresh[proposal.seed] = record
    return list(points.values())


def best_searched(points: Sequence[Point], count: int) -> list[Point]:
    """Return the best points that meet the constraints, by their results on the search's seed."""
    by_trial = {point.trial: point for point in points if objectives.feasible(point.searched.violations)}
    order = objectives.ranked({trial: point.searched.objectives for trial, point in by_trial.items()})
    return [by_trial[trial] for trial in order[:count]]


def by_mean(points: Sequence[Point]) -> list[Point]:
    """Return points from best to worst by their means; only those that meet the constraints and ran on most seeds."""
    by_trial = {point.trial: point for point in _eligible(points)}
    return [by_trial[trial] for trial in objectives.ranked({t: point.objectives for t, point in by_trial.items()})]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto front of points by their means; of a single objective, the best point first."""
    by_trial = {point.trial: point for point in _eligible(points)}
    return [by_trial[trial] for trial in objectives.front({t: point.objectives for t, point in by_trial.items()})]


def _eligible(points: Sequence[Point]) -> list[Point]:
    kept = [point for point in points if objectives.feasible(point.violations)]
    # A mean over fewer seeds is more likely to be extreme, so means over different numbers of seeds are not compared.
    most = max((len(point.by_seed) for point in kept), default=0)
    return [point for point in kept if len(point.by_seed) == most]


def is_confirmed(spec: JobSpec) -> bool:
    """Return whether the winner of a sweep is run on fresh seeds."""
    search = spec.search
    # A single point has not been selected, so its results are not biased; a front of several objectives has no winner.
    return search is not None and search.seeds > 1 and search.trials > 1 and len(objectives.names(search)) == 1


def due(spec: JobSpec, proposals: Proposals, records: Records, *, searched: bool) -> list[FollowUp]:
    """Return the trials that can run now: replicates, and once all of these have ended, the winner's confirmations.

    Args:
        searched: whether all trials of the search have ended. Only then are its `top` points known.
    """
    search = spec.search
    if search is None or search.seeds == 1:
        return []
    top = search.trials if search.top is None else search.top
    # Where every point is replicated, nothing has to be ranked first, and replicates need not wait for the search.
    everywhere = top >= search.trials
    if not (searched or everywhere):
        return []
    points = gather(proposals, records)
    # What was proposed already, whether it has ended or not; a resumed sweep proposes nothing twice.
    known = {(p.proposer, _identity(p.values), p.seed) for p in proposals.values()}

    def missing(point: Point, proposer: Literal["replicate", "confirmation"], seeds: range) -> list[FollowUp]:
        values = point.searched.values
        return [
            FollowUp(of=point.trial, values=values, proposer=proposer, seed=seed)
            for seed in seeds
            if (proposer, _identity(values), seed) not in known
        ]

    chosen = points if everywhere else best_searched(points, top)
    seeds = range(spec.seed + 1, spec.seed + search.seeds)
    replicates = [follow_up for point in chosen for follow_up in missing(point, "replicate", seeds)]
    # A confirmation is for the winner by its mean, and that is not known before every replicate has ended.
    running = any(p.proposer == "replicate" and trial not in records for trial, p in proposals.items())
    if replicates or running or not searched or not is_confirmed(spec):
        return replicates
    # Seeds that no replicate has had: on those that chose the winner its result is biased.
    fresh = range(seeds.stop, seeds.stop + search.seeds)
    return [follow_up for point in front(points)[:1] for follow_up in missing(point, "confirmation", fresh)]


def planned(spec: JobSpec, proposals: Proposals, records: Records, *, exhausted: bool) -> int:
    """Return how many trials a sweep will have, forks, replicates and confirmations included, as far as is known now.

    Args:
        exhausted: whether the sampler has nothing left to propose.
    """
    search = spec.search
    searching = [trial for trial, proposal in proposals.items() if is_search(proposal)]
    left = 0 if exhausted else max(0, (search.trials if search else 1) - len(searching))
    if search is None or search.seeds == 1:
        return len(proposals) + left
    # Points that are still to come are counted as if each trial that is open will complete with values of its own.
    open_ = left + sum(trial not in records for trial in searching)
    points = len(gather(proposals, records)) + open_
    coming = due(spec, proposals, records, searched=not open_)
    proposers = [proposal.proposer for proposal in proposals.values()]
    replicates = sum(follow_up.proposer == "replicate" for follow_up in coming)
    confirmations = len(coming) - replicates
    # While the search goes on, `due` knows only the points so far; what will be due at its end is estimated instead.
    if open_:
        all_of_them = min(search.top or points, points) * (search.seeds - 1)
        replicates = max(0, all_of_them - proposers.count("replicate"))
    # Confirmations become due last of all. Until then count those to come; afterwards, none are left but the due ones.
    if is_confirmed(spec) and points and not confirmations:
        confirmations = max(0, search.seeds - proposers.count("confirmation"))
    return len(proposals) + left + replicates + confirmations


def means(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over several trials."""
    return {name: fmean(each[name] for each in numbers) for name in numbers[0]}


def _identity(values: Mapping[str, Any]) -> str:
    # By repr, because 1, 1.0 and True are equal in Python but different settings.
    return repr(sorted(values.items()))
