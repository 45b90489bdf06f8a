"""The Python API: what the commands do, under their names; `load` and `load_model` read a sweep and an export."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import UsageError
from raysweep.job.jobfile import Job, load_job
from raysweep.job.plan import Fingerprints
from raysweep.records import environment
from raysweep.records.folder import SweepFolder, list_sweeps
from raysweep.records.schema import Status
from raysweep.reports.live.progress import Silent
from raysweep.sweep import lifecycle
from raysweep.sweep.code import check_code, code_of, record_code
from raysweep.sweep.observer import Observer

if TYPE_CHECKING:
    from raysweep.trial.exports.manifest import Format, Manifest
    from raysweep.trial.forecast.estimate import Estimate
    from raysweep.trial.store.garbage import Keep, Survey

RESULTS = Path("results")
POLL_S = 1.0


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
    from raysweep.cluster.connection import check_local_room
    from raysweep.cluster.driver import run_sweep
    from raysweep.trial.forecast.preflight import preflight

    checked = load_job(job, _with_trials(overrides, trials))
    if address is None:
        check_local_room(checked)
    SweepFolder.check_new(results, name)
    fingerprints = preflight(checked)
    about = environment.describe() | {
        "fingerprints": fingerprints.__dict__, "sharing": sharing, "code": code_of(checked),
    }  # fmt: skip
    folder = SweepFolder.create(results, checked, name, about)
    with _driving(folder):
        run_sweep(folder, checked, fingerprints, address=address, sharing=sharing, observer=observer or Silent())
    return folder


def resume(
    sweep: str,
    *,
    overrides: Sequence[str] = (),
    accept_new_code: bool = False,
    address: str | None = None,
    results: Path = RESULTS,
    observer: Observer | None = None,
) -> SweepFolder:
    """Continue a sweep: finished trials stay, the others go on from their last checkpoint.

    Args:
        overrides: `key=value` settings of its limits, such as budget.hours; see `lifecycle.CHANGEABLE`.
        accept_new_code: go on although the code that decides on outcomes changed since the sweep began: trials that
            have ended stay as they are, and the others are run by the code that is here, under new phase keys.

    Raises:
        SpecError: a setting is wrong, or would change what the sweep means.
        ArchiveError: no such sweep, it runs elsewhere, or its model, corpus or code is no longer what it was.
    """
    folder = SweepFolder.open(results, sweep)
    return _go_on(folder, address, observer, accept_new_code, lambda job: lifecycle.changed(job, overrides))


def extend(
    sweep: str,
    trials: int | str,
    *,
    accept_new_code: bool = False,
    address: str | None = None,
    results: Path = RESULTS,
    observer: Observer | None = None,
) -> SweepFolder:
    """Give a sweep more trials and run them: so many in all, or `+N` more.

    Raises:
        UsageError: as `resume`; or those are not more.
    """
    folder = SweepFolder.open(results, sweep)
    return _go_on(folder, address, observer, accept_new_code, lambda job: lifecycle.with_trials(job, trials))


def fork(
    sweep: str,
    trial: int,
    *,
    after: str,
    overrides: Sequence[str],
    accept_new_code: bool = False,
    address: str | None = None,
    results: Path = RESULTS,
    observer: Observer | None = None,
) -> SweepFolder:
    """Add a trial that is another one up to a phase and goes on with other settings, and run it.

    Args:
        after: the last phase that both have: `baseline`, `prune`, `measure`, `grow`, `learn`; `prune@2` of cycle 2.
        overrides: `key=value` settings of the later phases.

    Raises:
        UsageError: as `resume`; or there is no such trial or phase, or a setting touches a phase before the fork.
    """
    folder = SweepFolder.open(results, sweep)

    def propose(job: Job, fingerprints: Fingerprints) -> None:
        folder.add_proposal(lifecycle.forked(folder, job, fingerprints, trial, after, overrides))

    return _go_on(folder, address, observer, accept_new_code, prepare=propose)


def retry(
    sweep: str,
    *,
    statuses: Sequence[Status] = ("FAILED",),
    accept_new_code: bool = False,
    address: str | None = None,
    results: Path = RESULTS,
    observer: Observer | None = None,
) -> SweepFolder:
    """Run trials that came to no good end once more, each from its last checkpoint.

    Args:
        statuses: FAILED, DIVERGED, or both. A trial that diverged does so again, unless its machine was at fault.

    Raises:
        UsageError: as `resume`; or there is no such trial.
    """
    folder = SweepFolder.open(results, sweep)

    def reopen(job: Job, fingerprints: Fingerprints) -> None:
        for trial in lifecycle.to_retry(folder, statuses):
            folder.reopen(trial)

    return _go_on(folder, address, observer, accept_new_code, prepare=reopen)


def stop(sweep: str, *, results: Path = RESULTS, waiting: Callable[[float], None] = lambda seconds: None) -> bool:
    """Ask the driver of a sweep, on whatever machine it runs, to stop, and wait until it has; False: none runs it.

    Its trials stop at their next step, with a checkpoint.

    Args:
        waiting: told every second how long it has taken so far.
    """
    folder = SweepFolder.open(results, sweep)
    began, running = time.monotonic(), folder.running()
    if not running:
        return False
    try:
        while running:
            folder.request_stop()  # again and again: a driver that has only just started clears old requests away
            waiting(time.monotonic() - began)
            time.sleep(POLL_S)
            running = folder.running()
    finally:
        if not running:
            folder.withdraw_stop()
    return True


def gc(sweep: str, *, keep: Keep | None = None, dry_run: bool = False, results: Path = RESULTS) -> Survey:
    """Remove the checkpoints of a sweep that nothing needs, and return what stayed and what went.

    Args:
        keep: how many stay, beside those that something refers to.
        dry_run: only say what would go.

    Raises:
        ArchiveError: no such sweep, or it is being run.
    """
    from raysweep.trial.store.garbage import Keep, collect, survey

    folder = SweepFolder.open(results, sweep)
    if dry_run:
        return survey(folder, keep or Keep())
    with _held(folder):
        found = survey(folder, keep or Keep())
        collect(found)
    return found


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
    from raysweep.trial.exports.write import export as write

    return write(SweepFolder.open(results, sweep), trial, Path(out), format)


def load_model(folder: str | Path) -> Any:
    """Return the network of an exported folder, compact or dense: its weights bit for bit, in evaluation mode.

    Raises:
        ModelError: the folder is no export of raysweep, or it is damaged.
    """
    from raysweep.trial.exports.load import load_model as read

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
    from raysweep.trial.forecast.estimate import estimate
    from raysweep.trial.forecast.preflight import preflight

    checked = load_job(job, _with_trials(overrides, trials))
    past = [folder for folder in map(results.joinpath, list_sweeps(results)) if _same_work(folder, checked)]
    records = [record for folder in past for record in SweepFolder(folder).phases(stop="curve")]
    return checked, estimate(checked, preflight(checked), records, calibrate=calibrate)


def _as_it_is(job: Job) -> Job:
    return job


def _go_on(
    folder: SweepFolder,
    address: str | None,
    observer: Observer | None,
    accept_new_code: bool,
    change: Callable[[Job], Job] = _as_it_is,
    prepare: Callable[[Job, Fingerprints], None] = lambda job, fingerprints: None,
) -> SweepFolder:
    """Run what is left of a sweep, after it was changed and prepared; a refusal leaves it as it was."""
    from raysweep.cluster.connection import check_local_room
    from raysweep.cluster.driver import run_sweep
    from raysweep.trial.forecast.preflight import check_unchanged

    with _driving(folder):
        before, about = folder.job(), folder.environment()
        job = change(before)
        if address is None:
            check_local_room(job)
        fingerprints = check_unchanged(job, about, folder.name)
        changed = check_code(folder, _code_here(folder, job), accept=accept_new_code)
        prepare(job, fingerprints)
        if job is not before:
            folder.replace_job(job)
        record_code(folder, _code_here(folder, job), changed=bool(changed))  # of a fork's strategies, too
        if observer is not None and changed:
            observer.code_changed(changed)
        run_sweep(folder, job, fingerprints, address=address, sharing=about["sharing"], observer=observer or Silent())
    return folder


def _code_here(folder: SweepFolder, job: Job) -> dict[str, str]:
    return code_of(job, (proposal.values for proposal in folder.proposals().values()))


@contextmanager
def _driving(folder: SweepFolder) -> Iterator[None]:
    """Be a sweep's only driver; first clear away what killed writers and an old request to stop left."""
    from raysweep.trial.store.phase_store import sweep_up

    with _held(folder):
        folder.withdraw_stop()
        sweep_up(folder.store)
        yield


@contextmanager
def _held(folder: SweepFolder) -> Iterator[None]:
    lock = folder.lock()
    try:
        yield
    finally:
        lock.release()


def _with_trials(overrides: Sequence[str], trials: int | None) -> list[str]:
    return [*overrides, *([f"search.trials={trials}"] if trials is not None else [])]


def _same_work(folder: Path, job: Job) -> bool:
    """Whether an earlier sweep's pace says something about this job's: same model, window, batch and workers.

    A simulated one says nothing.
    """
    sweep = SweepFolder(folder)
    try:
        earlier, now = sweep.job().spec, job.spec
    except UsageError:  # written by hand or by another raysweep; an estimate can do without it
        return False
    return not sweep.simulated and (earlier.model, earlier.data.seq_len, earlier.training, earlier.scale.workers) == (
        now.model, now.data.seq_len, now.training, now.scale.workers,
    )  # fmt: skip
