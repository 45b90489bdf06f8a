"""The Python API: `run`, `resume`, `load` and `export` do what the commands do; `load_model` reads an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import environment
from raysweep.archive import SweepFolder, list_sweeps
from raysweep.errors import UsageError
from raysweep.jobfile import Job, load_job
from raysweep.recorder import Observer
from raysweep.reports.progress import Silent

if TYPE_CHECKING:
    from raysweep.core.estimate import Estimate
    from raysweep.exports.manifest import Format, Manifest

RESULTS = Path("results")


def run(
    job: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    trials: int | None = None,
    address: str | None = None,
    name: str | None = None,
    results: Path = RESULTS,
    sharing: bool = True,
    observer: Observer | None = None,
) -> SweepFolder:
    """Run a sweep to its end and return its folder.

    Args:
        job: a job file, or a job as a mapping.
        overrides: `key=value` settings, as with --set.
        trials: overrides search.trials.
        address: a reachable Ray cluster; None starts one on this machine.
        name: the sweep's name; None takes `<job>-<number>`.
        results: the folder of all sweeps.
        sharing: False trains every phase of every trial anew.

    Raises:
        UsageError: the job, or something it names, is wrong; nothing was started.
        RunError: the sweep could not go on; `resume` continues it.
    """
    from raysweep.cluster.sweep import check_local_room, run_sweep
    from raysweep.core.preflight import preflight

    checked = load_job(job, _with_trials(overrides, trials))
    if address is None:
        check_local_room(checked)
    SweepFolder.check_new(results, name)
    fingerprints = preflight(checked)
    about = environment.describe() | {"fingerprints": fingerprints.__dict__, "sharing": sharing}
    folder = SweepFolder.create(results, checked, name, about)
    lock = folder.lock()
    try:
        run_sweep(folder, checked, fingerprints, address=address, sharing=sharing, observer=observer or Silent())
    finally:
        lock.release()
    return folder


def resume(
    sweep: str, *, address: str | None = None, results: Path = RESULTS, observer: Observer | None = None
) -> SweepFolder:
    """Continue an interrupted sweep: finished trials stay, the others go on from their last finished phase.

    Raises:
        ArchiveError: no such sweep, it runs elsewhere, or its model or corpus is no longer what it was.
    """
    from raysweep.cluster.sweep import run_sweep
    from raysweep.core.preflight import check_unchanged

    folder = SweepFolder.open(results, sweep)
    lock = folder.lock()
    try:
        job, about = folder.job(), folder.environment()
        fingerprints = check_unchanged(job, about, sweep)
        run_sweep(folder, job, fingerprints, address=address, sharing=about["sharing"], observer=observer or Silent())
    finally:
        lock.release()
    return folder


def load(sweep: str, *, results: Path = RESULTS) -> SweepFolder:
    """Open a sweep's records, read-only."""
    return SweepFolder.open(results, sweep)


def export(sweep: str, trial: int, out: str | Path, *, format: Format = "compact", results: Path = RESULTS) -> Manifest:
    """Write a trial's model as a folder, with its tokenizer and a model card; return what its raysweep.json says.

    Args:
        out: the folder; made here, or there and empty.
        format: `compact` without the absent heads, for `load_model`; or `dense`, for plain transformers.

    Raises:
        UsageError: no such trial, it has not come to a good end, or the folder is taken.
    """
    from raysweep.exports.write import export as write

    return write(SweepFolder.open(results, sweep), trial, Path(out), format)


def load_model(folder: str | Path) -> Any:
    """Return the network of an exported folder, compact or dense: its weights bit for bit, in evaluation mode.

    Raises:
        ModelError: the folder is no export of raysweep, or it is damaged.
    """
    from raysweep.exports.load import load_model as read

    return read(folder)


def plan(
    job: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    trials: int | None = None,
    results: Path = RESULTS,
    calibrate: bool = False,
) -> tuple[Job, Estimate]:
    """Return a checked job and what it would take; starts nothing.

    Args:
        calibrate: train a few steps here to judge the time, where no earlier sweep tells it.

    Raises:
        UsageError: the job, or something it names, is wrong.
    """
    from raysweep.core.estimate import estimate
    from raysweep.core.preflight import preflight

    checked = load_job(job, _with_trials(overrides, trials))
    past = [folder for folder in map(results.joinpath, list_sweeps(results)) if _same_work(folder, checked)]
    records = [record for folder in past for record in SweepFolder(folder).phases(stop="curve")]
    return checked, estimate(checked, preflight(checked), records, calibrate=calibrate)


def _with_trials(overrides: Sequence[str], trials: int | None) -> list[str]:
    return [*overrides, *([f"search.trials={trials}"] if trials is not None else [])]


def _same_work(folder: Path, job: Job) -> bool:
    """Whether an earlier sweep's pace says something about this job's: same model, window, batch and workers."""
    try:
        earlier, now = SweepFolder(folder).job().spec, job.spec
    except UsageError:  # written by hand or by another raysweep; an estimate can do without it
        return False
    return (earlier.model, earlier.data.seq_len, earlier.training, earlier.scale.workers) == (
        now.model, now.data.seq_len, now.training, now.scale.workers,
    )  # fmt: skip
