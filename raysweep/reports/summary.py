"""The table of a sweep, its best trial, and what to do next: from records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.archive import SweepFolder
from raysweep.errors import ArchiveError
from raysweep.records import PhaseRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class TrialSummary:
    """One line of the table: a trial, as far as it has come."""

    trial: int
    status: str
    values: dict[str, Any]
    objective: float | None
    attempts: int
    seconds: float
    phases: list[PhaseRecord]
    """The trial's own, in order."""
    error: str | None
    halted: dict[str, Any] | None = None
    controls: dict[str, list[PhaseRecord]] = field(default_factory=dict)
    """What each control arm ran beside the trial's own phases."""
    control_errors: dict[str, str] = field(default_factory=dict)
    control_ends: dict[str, PhaseRecord] = field(default_factory=dict)
    """The last phase of each control arm, whoever ran it."""

    @property
    def last(self) -> PhaseRecord | None:
        """The phase that is the trial's result: its last, unless it halted and went back."""
        if self.halted:
            return next(record for record in self.phases if record.key == self.halted["kept"])
        return self.phases[-1] if self.phases else None

    @property
    def recovery(self) -> float | None:
        """(pruned - final) / (pruned - dense) in losses; None without both, or where dense is no better than pruned."""
        last, dense = self.last, self.control_ends.get("dense")
        if self.status != "COMPLETE" or last is None or dense is None:
            return None
        pruned = _pruned_loss(self.phases, last.cycle)
        if pruned is None or pruned <= dense.loss:
            return None
        return (pruned - last.loss) / (pruned - dense.loss)

    def to_dict(self) -> dict[str, Any]:
        last = self.last
        return {
            "trial": self.trial,
            "status": self.status,
            "values": self.values,
            "objective": self.objective,
            "perplexity": {label(record): record.perplexity for record in self.phases},
            "reused": [label(record) for record in self.phases if record.reused],
            "final_perplexity": last.perplexity if last else None,
            "controls": {
                arm: {"loss": end.loss, "perplexity": end.perplexity, "active_heads": end.active_heads}
                for arm, end in self.control_ends.items()
            },
            "control_errors": self.control_errors,
            "recovery": self.recovery,
            "halted": self.halted,
            "active_heads": last.active_heads if last else None,
            "head_slots": sum(map(len, last.head_map)) if last else None,
            "params": last.params if last else None,
            "flops_per_token": last.flops_per_token if last else None,
            "attempts": self.attempts,
            "seconds": self.seconds,
            "error": self.error,
        }


def label(record: PhaseRecord) -> str:
    return record.phase if record.cycle <= 1 else f"{record.phase}@{record.cycle}"


def _pruned_loss(phases: Sequence[PhaseRecord], cycle: int) -> float | None:
    """Return the loss after the last prune up to a cycle; inside a continuous phase, the worst that a prune left."""
    measured = [record.loss for record in phases if record.phase == "measure" and record.cycle <= cycle]
    events = [event for record in phases if record.cycle <= cycle for event in record.events or ()]
    within = [float(event["loss"]) for event in events if event["phase"] == "measure"]
    return measured[-1] if measured else max(within, default=None)


def summarise(folder: SweepFolder) -> list[TrialSummary]:
    """Return a summary of every proposed trial, in order."""
    phases: dict[int, list[PhaseRecord]] = {}
    for record in folder.phases():
        phases.setdefault(record.trial, []).append(record)
    ended = folder.trials()
    return [
        _summary(trial, proposal.values, ended.get(trial), phases.get(trial, []), proposal.attempt)
        for trial, proposal in sorted(folder.proposals().items())
    ]


def _summary(
    trial: int, values: dict[str, Any], ended: TrialRecord | None, phases: list[PhaseRecord], attempt: int
) -> TrialSummary:
    own = [record for record in phases if record.arm == "main"]
    by_key = {record.key: record for record in phases}
    arms = ended.controls if ended else {}
    return TrialSummary(
        trial=trial,
        status=ended.status if ended else "UNFINISHED",
        values=values,
        objective=ended.objective if ended else None,
        attempts=ended.attempts if ended else attempt,
        seconds=ended.seconds if ended else round(sum(record.seconds for record in phases), 3),
        phases=own,
        error=ended.error if ended else None,
        halted=ended.halted if ended else None,
        control_errors=ended.control_errors if ended else {},
        controls={arm: [record for record in phases if record.arm == arm] for arm in arms},
        control_ends={arm: by_key[keys[-1]] for arm, keys in arms.items() if keys and keys[-1] in by_key},
    )


def best_of(summaries: Sequence[TrialSummary]) -> TrialSummary | None:
    """Return the completed trial with the lowest objective."""
    complete = [summary for summary in summaries if summary.status == "COMPLETE" and summary.objective is not None]
    return min(complete, key=lambda summary: (summary.objective, summary.trial), default=None)


def sweep_state(folder: SweepFolder) -> dict[str, Any]:
    """Return a sweep as one JSON-able object: counts, table, best trial, work done."""
    job = folder.job().spec
    summaries = summarise(folder)
    best = best_of(summaries)
    phases = folder.phases()
    executed = [record for record in phases if not record.reused]
    counts: dict[str, int] = {}
    for summary in summaries:
        counts[summary.status] = counts.get(summary.status, 0) + 1
    return {
        "sweep": folder.name,
        "job": job.name,
        "model": job.model.name,
        "data": job.data.name,
        "minimize": job.search.minimize if job.search else "loss",
        "planned": job.search.trials if job.search else 1,
        "counts": counts,
        "best": best.trial if best else None,
        "phases_run": len(executed),
        "phases_reused": len(phases) - len(executed),
        "steps_run": sum(record.steps for record in executed),
        "worker_groups_started": len(folder.lanes()),
        "trials": [summary.to_dict() for summary in summaries],
    }


def trial_state(folder: SweepFolder, trial: int) -> dict[str, Any]:
    """Return one trial with its phase records as one JSON-able object.

    Raises:
        ArchiveError: the sweep has no such trial.
    """
    found = next((summary for summary in summarise(folder) if summary.trial == trial), None)
    if found is None:
        known = ", ".join(map(str, sorted(folder.proposals()))) or "none yet"
        raise ArchiveError(f"sweep {folder.name!r} has no trial {trial}. Its trials: {known}.")
    return {
        "sweep": folder.name, **found.to_dict(), "phases": [record.to_dict() for record in found.phases],
        "control_phases": [record.to_dict() for records in found.controls.values() for record in records],
    }  # fmt: skip


def is_finished(state: Mapping[str, Any]) -> bool:
    """Whether every planned trial has ended."""
    ended = sum(count for status, count in state["counts"].items() if status != "UNFINISHED")
    return ended >= state["planned"]


def next_commands(state: Mapping[str, Any]) -> list[str]:
    """Return the commands that are useful now; `show` on the best trial, or where there is none on one that failed."""
    sweep = state["sweep"]
    commands = [] if is_finished(state) else [f"raysweep resume {sweep}"]
    failed = next((trial["trial"] for trial in state["trials"] if trial["error"]), None)
    worth_showing = state["best"] if state["best"] is not None else failed
    if worth_showing is not None:
        commands.append(f"raysweep show {sweep} {worth_showing}")
    return [*commands, f"raysweep tensorboard {sweep}"]
