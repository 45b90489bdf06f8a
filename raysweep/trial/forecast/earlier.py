"""Find what earlier sweeps say about the pace of a job."""

from __future__ import annotations

from pathlib import Path

from raysweep.errors import UsageError
from raysweep.job.jobfile import Job
from raysweep.records.folder import SweepFolder
from raysweep.records.results import list_sweeps
from raysweep.records.schema import PhaseRecord


def earlier_phases(results: Path, job: Job) -> list[PhaseRecord]:
    """Return the phases, without their curves, of the sweeps in a results folder whose pace is also this job's."""
    sweeps = [SweepFolder(results / name) for name in list_sweeps(results)]
    return [record for sweep in sweeps if _same_pace(sweep, job) for record in sweep.phases(stop="curve")]


def _same_pace(sweep: SweepFolder, job: Job) -> bool:
    """Return whether a sweep trained the same model on the same windows, batches and workers as a job would."""
    try:
        earlier, now = sweep.job().spec, job.spec
    except UsageError:  # written by hand or by another raysweep; an estimate can do without it
        return False
    # The seconds of a simulated sweep are virtual.
    return not sweep.simulated and (earlier.model, earlier.data.seq_len, earlier.training, earlier.scale.workers) == (
        now.model, now.data.seq_len, now.training, now.scale.workers,
    )  # fmt: skip
