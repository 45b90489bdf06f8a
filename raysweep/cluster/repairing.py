"""Run again what the checkpoints of a sweep have lost; nothing else of the sweep is changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from raysweep.cluster.ownership import driving
from raysweep.errors import ArchiveError
from raysweep.job import code
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.sweep.code import check_code, code_of
from raysweep.sweep.lifecycle import check_same
from raysweep.sweep.mending import mended_job
from raysweep.sweep.repairing import LostPhase, Repaired, compared, lost_of_result, lost_phases, set_aside
from raysweep.sweep.wording import some


def regain(folder: SweepFolder, trial: int, tell: Callable[[str], object]) -> None:
    """Run again what the result of a trial has lost, if it has lost anything; as `repair`."""
    if lost_of_result(folder, trial):
        for each in repair(folder, trial, tell):
            if each.differs:
                tell(f"trial {trial}, {each.phase}: run again, it differs from its record in {some(each.differs)}")


def repair(folder: SweepFolder, trial: int | None, tell: Callable[[str], object]) -> list[Repaired]:
    """Run lost phases again, on as many ranks and on the kind of device that they ran on first.

    Args:
        trial: look at the result of this trial alone, and regain it even if it was removed to free its space.
        tell: called with a line for each thing that is done.

    Raises:
        UsageError: the sweep is being run; its job, code, model or corpus changed since it began, so that no phase
            would be the same; or this machine lacks the GPUs.
        RunError: a phase could not be run.
    """
    code.read_again()
    with driving(folder):
        about = folder.environment()
        job, mended = mended_job(folder, _points)
        for text in mended:
            tell(text)
        lost = lost_phases(folder) if trial is None else lost_of_result(folder, trial)
        if not lost:
            set_aside(folder, ())
            return []
        check_same(folder, job)
        proposals = folder.proposals()
        check_code(folder, code_of(job, _points(folder)), accept=False)
        # Imported only now: torch takes seconds, and most sweeps have lost nothing.
        from raysweep.trial.forecast.preflight import check_unchanged
        from raysweep.trial.repairing import run_lost

        fingerprints = check_unchanged(job, about, folder.name)
        for each in lost:
            tell(f"trial {each.record.trial}, {each.record.phase}: its checkpoint is lost ({each.why}); run again")
        plans = {trial: plan_of(job, proposals[trial], fingerprints) for trial in {e.record.trial for e in lost}}
        _check_planned(folder, lost, {phase.key for plan in plans.values() for phase in plan.every_phase()})
        set_aside(folder, lost)
        run_lost([(plans[each.record.trial], each.record.key, each.store) for each in lost], job.spec.scale)
        return compared(lost)


def _points(folder: SweepFolder) -> list[Mapping[str, Any]]:
    """Return the values of all trials: phases of those that have ended are run again, too."""
    return [proposal.values for proposal in folder.proposals().values()]


def _check_planned(folder: SweepFolder, lost: Sequence[LostPhase], planned: Collection[str]) -> None:
    """Check that every lost phase is one of the job and the code that are here.

    Raises:
        ArchiveError: a sweep that went on with other code has phases of the earlier one.
    """
    foreign = next((each.record for each in lost if each.record.key not in planned), None)
    if foreign is not None:
        raise ArchiveError(
            f"trial {foreign.trial} of sweep {folder.name!r}: phase {foreign.phase} ({foreign.key}) was run by "
            "other code than that of today, and cannot be run again by this. Put the code back that env.json names."
        )
