"""Summarise a sweep or a trial as JSON: its table, its best trial, and the next useful commands. From records only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.errors import ArchiveError
from raysweep.records import objectives, points
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import ON_OTHER_SEEDS, PhaseRecord, Proposal, TrialRecord, recovery
from raysweep.reports.over_seeds import over_seeds, winner


@dataclass(frozen=True, kw_only=True)
class TrialSummary:
    """A line of the table: one trial, finished or not."""

    proposal: Proposal
    status: str
    attempts: int
    seconds: float
    phases: list[PhaseRecord]
    """Its own phases, without those of control arms, in order."""
    ended: TrialRecord | None = None
    """Its final record."""
    controls: dict[str, list[PhaseRecord]] = field(default_factory=dict)
    """Phases that each control arm ran for itself; it shares others with the trial."""
    control_ends: dict[str, PhaseRecord] = field(default_factory=dict)
    """The last phase of each control arm, whether the arm or the trial itself ran it."""

    @property
    def trial(self) -> int:
        return self.proposal.trial

    @property
    def last(self) -> PhaseRecord | None:
        """The phase that is the trial's result: its last, unless it halted and went back."""
        if self.ended and self.ended.halted:
            # It ran a cycle that was too much, and its result is the model of an earlier phase.
            return next(record for record in self.phases if record.key == self.ended.halted["kept"])
        return self.phases[-1] if self.phases else None

    @property
    def recovery(self) -> float | None:
        """Return `records.schema.recovery`; None without a prune or a dense control."""
        last, dense = self.last, self.control_ends.get("dense")
        if self.status != "COMPLETE" or last is None or dense is None:
            return None
        # Up to the cycle of the result: a later prune, undone by halting, is not what was recovered from.
        pruned = _pruned_loss(self.phases, last.cycle)
        return None if pruned is None else recovery(pruned=pruned, learned=last.loss, dense=dense.loss)

    def to_dict(self) -> dict[str, Any]:
        last, ended = self.last, self.ended
        return {
            "trial": self.trial,
            "status": self.status,
            "values": self.proposal.values,
            "seed": self.proposal.seed,
            "proposer": self.proposal.proposer,
            "of": self.proposal.of,
            "objective": ended.objective if ended else None,
            "objectives": ended.objectives if ended else {},
            "violations": ended.violations if ended else {},
            # None, not False, where the trial did not complete: it was never measured as a whole.
            "feasible": objectives.feasible(ended.violations) if ended and self.status == "COMPLETE" else None,
            "perplexity": {label(record): record.perplexity for record in self.phases},
            "reused": [label(record) for record in self.phases if record.reused],
            "final_perplexity": last.perplexity if last else None,
            "metrics": {"accuracy": last.accuracy, **last.metrics} if last and last.metrics else {},
            "controls": {
                arm: {"loss": end.loss, "perplexity": end.perplexity, "active_heads": end.active_heads}
                for arm, end in self.control_ends.items()
            },
            "control_errors": ended.control_errors if ended else {},
            "recovery": self.recovery,
            "halted": ended.halted if ended else None,
            "stopped": ended.stopped if ended else None,
            "active_heads": last.active_heads if last else None,
            "head_slots": sum(map(len, last.head_map)) if last else None,
            "params": last.params if last else None,
            "flops_per_token": last.flops_per_token if last else None,
            "attempts": self.attempts,
            "seconds": self.seconds,
            "error": ended.error if ended else None,
        }


def label(record: PhaseRecord) -> str:
    """Return the name of a phase within its trial: `prune`, and from the second cycle on `prune@2`."""
    # The baseline has cycle 0, the phases of the first cycle have 1: neither needs a number.
    return record.phase if record.cycle <= 1 else f"{record.phase}@{record.cycle}"


def _pruned_loss(phases: Sequence[PhaseRecord], cycle: int) -> float | None:
    """Return the loss after the last prune up to a cycle; of prunes inside a continuous phase, the highest.

    docs/cycles.md says what recovery means then.
    """
    measured = [record.loss for record in phases if record.phase == "measure" and record.cycle <= cycle]
    events = [event for record in phases if record.cycle <= cycle for event in record.events or ()]
    within = [float(event["loss"]) for event in events if event["phase"] == "measure"]
    return measured[-1] if measured else max(within, default=None)


def summarise(
    proposals: Mapping[int, Proposal], ended: Mapping[int, TrialRecord], phases: Sequence[PhaseRecord]
) -> list[TrialSummary]:
    """Return a summary of every proposed trial, in order."""
    # One pass over the phases: searching all of them for each trial would take the square of the time.
    by_trial: dict[int, list[PhaseRecord]] = {}
    for record in phases:
        by_trial.setdefault(record.trial, []).append(record)
    return [
        _summary(proposal, ended.get(trial), by_trial.get(trial, [])) for trial, proposal in sorted(proposals.items())
    ]


def _summary(proposal: Proposal, ended: TrialRecord | None, phases: list[PhaseRecord]) -> TrialSummary:
    # A control arm names its phases by key: those that it shares with the trial were recorded once.
    by_key = {record.key: record for record in phases}
    arms = ended.controls if ended else {}
    return TrialSummary(
        proposal=proposal,
        status=ended.status if ended else "UNFINISHED",
        attempts=ended.attempts if ended else proposal.attempt,
        seconds=ended.seconds if ended else round(sum(record.seconds for record in phases), 3),
        phases=_own_phases(ended, phases),
        ended=ended,
        controls={arm: [record for record in phases if record.arm == arm] for arm in arms},
        control_ends={arm: by_key[keys[-1]] for arm, keys in arms.items() if keys and keys[-1] in by_key},
    )


def _own_phases(ended: TrialRecord | None, phases: Sequence[PhaseRecord]) -> list[PhaseRecord]:
    """Return the records of a trial's own phases, in order.

    A trial that went on with other code ran its phases again, under other keys. Its final record says which of them
    belong to its result; before it has ended, the later one of two equal labels does.
    """
    own = [record for record in phases if record.arm == "main"]
    if ended is None:
        return list({label(record): record for record in own}.values())
    return [record for record in own if record.key in ended.phases]


def _replicated(proposals: Mapping[int, Proposal], ended: Mapping[int, TrialRecord]) -> bool:
    """Return whether points have been run on more seeds, and no replicate is still running."""
    replicates = [trial for trial, proposal in proposals.items() if proposal.proposer == "replicate"]
    return bool(replicates) and all(trial in ended for trial in replicates)


def best_trials(proposals: Mapping[int, Proposal], ended: Mapping[int, TrialRecord]) -> list[int]:
    """Return the trials that no other trial dominates, in order of their first objective; all keep the constraints.

    Once points have been replicated, their means over the seeds are compared; each is named by the trial that found it.
    """
    # Not before the last replicate has ended: a mean over fewer seeds is noisier, and would win more often by luck.
    if _replicated(proposals, ended):
        return [point.trial for point in points.front(points.gather(proposals, ended))]
    return objectives.front(
        {
            trial: record.objectives
            for trial, record in sorted(ended.items())
            if record.status == "COMPLETE"
            and objectives.feasible(record.violations)
            and record.proposer not in ON_OTHER_SEEDS  # those measure a point again, and compete with none
        }
    )


def sweep_state(folder: SweepFolder) -> dict[str, Any]:
    """Return a sweep as one JSON-able object: counts, table, best trials, points over seeds, work done."""
    # No table shows the curves, which would have to be parsed: reading a line stops in front of them.
    job = folder.job().spec
    proposals, ended, phases = folder.proposals(), folder.trials(), folder.phases(stop="curve")
    summaries = summarise(proposals, ended, phases)
    best = best_trials(proposals, ended)
    executed = [record for record in phases if not record.reused]
    minimized = objectives.names(job.search)
    contested = job.search if points.is_confirmed(job) else None
    losses = {
        summary.trial: {"main": summary.last.loss, **{arm: end.loss for arm, end in summary.control_ends.items()}}
        for summary in summaries
        if summary.last
    }
    tried = points.gather(proposals, ended)
    return {
        "sweep": folder.name,
        "job": job.name,
        "model": job.model.name,
        "data": job.data.name,
        "minimize": minimized[0] if len(minimized) == 1 else list(minimized),
        "seeds": job.search.seeds if job.search else 1,
        "planned": points.planned(job, proposals, ended, exhausted=folder.exhausted()),
        "counts": dict(Counter(summary.status for summary in summaries)),
        "best": best[0] if best else None,
        "front": best,
        "phases_run": len(executed),
        "phases_reused": len(phases) - len(executed),
        "steps_run": sum(record.steps for record in executed),
        "worker_groups_started": len(folder.lanes()),
        "points": over_seeds(tried, best[0] if best else None, losses),
        "winner": winner(tried, contested) if contested and _replicated(proposals, ended) else None,
        "trials": [summary.to_dict() for summary in summaries],
    }


def trial_state(folder: SweepFolder, trial: int) -> dict[str, Any]:
    """Return one trial with its phase records as one JSON-able object.

    Raises:
        ArchiveError: the sweep has no such trial.
    """
    summaries = summarise(folder.proposals(), folder.trials(), folder.phases())
    found = next((summary for summary in summaries if summary.trial == trial), None)
    if found is None:
        known = ", ".join(map(str, sorted(folder.proposals()))) or "none yet"
        raise ArchiveError(f"sweep {folder.name!r} has no trial {trial}. Its trials: {known}.")
    return {
        "sweep": folder.name, **found.to_dict(), "phases": [record.to_dict() for record in found.phases],
        "control_phases": [record.to_dict() for records in found.controls.values() for record in records],
    }  # fmt: skip


def is_finished(state: Mapping[str, Any]) -> bool:
    """Return whether every planned trial has ended."""
    ended = sum(count for status, count in state["counts"].items() if status != "UNFINISHED")
    return ended >= state["planned"]


def next_commands(state: Mapping[str, Any]) -> list[str]:
    """Return the useful commands: `show` for the best trial, or where there is none for the first that failed."""
    sweep = state["sweep"]
    commands = [] if is_finished(state) else [f"raysweep resume {sweep}"]
    failed = next((trial["trial"] for trial in state["trials"] if trial["error"]), None)
    worth_showing = state["best"] if state["best"] is not None else failed
    if worth_showing is not None:
        commands.append(f"raysweep show {sweep} {worth_showing}")
    return [*commands, f"raysweep tensorboard {sweep}", *(_ways_on(state) if is_finished(state) else ())]


def _ways_on(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield commands that go beyond the plan: retry failed trials, extend the sweep, fork the best trial."""
    sweep, best = state["sweep"], state["best"]
    if "FAILED" in state["counts"]:
        yield f"raysweep retry {sweep} --failed"
    if state["planned"] > 1:
        yield f"raysweep extend {sweep} --trials +{state['planned']}"
    phases = next((list(trial["perplexity"]) for trial in state["trials"] if trial["trial"] == best), [])
    # A fork continues after a phase, so there must be one behind it; after the last but one it changes the last alone.
    if len(phases) > 1:
        yield f"raysweep fork {sweep} {best} --after {phases[-2]} --set KEY=VALUE"
