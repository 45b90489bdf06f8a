"""The Python API: what the commands do, under their names; `load` and `load_model` read a sweep and an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.cluster.continuing import go_on
from raysweep.cluster.ownership import driving, held, stop_and_wait
from raysweep.cluster.repairing import regain
from raysweep.cluster.repairing import repair as _repair
from raysweep.job import code
from raysweep.job.jobfile import Job, load_job
from raysweep.job.permission import with_modules
from raysweep.job.plan import Fingerprints
from raysweep.records import environment
from raysweep.records.folder import SweepFolder
from raysweep.records.results import check_new_sweep
from raysweep.records.schema import Status
from raysweep.reports.live.progress import Silent
from raysweep.sweep import lifecycle
from raysweep.sweep.code import code_of
from raysweep.sweep.observer import Observer
from raysweep.sweep.repairing import Repaired

if TYPE_CHECKING:  # for signatures alone: trial/ loads torch
    from raysweep.trial.exports.manifest import Format, Manifest
    from raysweep.trial.forecast.estimate import Estimate
    from raysweep.trial.store.garbage import Keep, Survey

# Functions import what needs torch or Ray when they are called: checking a job or reading a sweep waits for neither.
RESULTS = Path("results")
Tell = Callable[[str], object]
"""Is called with a line for each thing that is done; `str` takes it in silence."""


def run(
    job: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = (), trials: int | None = None,
    address: str | None = None, name: str | None = None, results: Path = RESULTS, sharing: bool = True,
    private: bool = False, observer: Observer | None = None,
) -> SweepFolder:  # fmt: skip
    """Run a sweep to its end and return its folder.

    Args:
        job: a job file here, one that ships with raysweep (`jobs/quickstart.yaml`), or a job as a mapping.
        overrides: `key=value` settings, as with --set.
        trials: overrides search.trials.
        address: a reachable Ray cluster; None starts one on this machine.
        name: the sweep's name in the folder `results`; None takes `<job>-<number>`.
        private: nobody but its owner can look into the sweep's folder.
        sharing: False trains every phase of every trial, even one that another trial has trained.

    Raises:
        UsageError: the job, or something it names, is wrong; nothing was started.
        RunError: the sweep could not go on; `resume` continues it.
    """
    # Before the imports below, which take seconds.
    checked = with_modules(load_job(job, _with_trials(overrides, trials)))
    from raysweep.cluster.connection import check_place

    code.read_again()
    check_place(checked, address)
    check_new_sweep(results, name)  # before the preflight, which may download a model
    from raysweep.cluster.driver import run_sweep
    from raysweep.trial.forecast.preflight import preflight

    fingerprints = preflight(checked)
    about = {"fingerprints": fingerprints.__dict__, "sharing": sharing, "code": code_of(checked)}
    folder = SweepFolder.create(results, checked, name, environment.describe() | about, private=private)
    with driving(folder):
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
        overrides: `key=value` settings of its limits, such as budget.hours; see `job.identity.CHANGEABLE`.
        accept_new_code: go on although the code that decides on outcomes changed since the sweep began. Trials that
            have ended stay as they are; the others are run by the code that is here, under new phase keys.

    Raises:
        SpecError: a setting is wrong, or would make new trials incomparable with the finished ones.
        ArchiveError: no such sweep, another process runs it, or its model, corpus or code changed since it began.
    """
    return go_on(
        SweepFolder.open(results, sweep), address=address, observer=observer, accept_new_code=accept_new_code,
        change=lambda job: lifecycle.changed(job, overrides),
    )  # fmt: skip


def extend(
    sweep: str,
    trials: int | str,
    *,
    accept_new_code: bool = False,
    address: str | None = None,
    results: Path = RESULTS,
    observer: Observer | None = None,
) -> SweepFolder:
    """Give a sweep more trials and run them.

    Args:
        trials: how many in all, or `+N` for so many more.

    Raises:
        UsageError: as `resume`; or the sweep has as many already.
    """
    return go_on(
        SweepFolder.open(results, sweep), address=address, observer=observer, accept_new_code=accept_new_code,
        change=lambda job: lifecycle.with_trials(job, trials),
    )  # fmt: skip


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
    """Add a trial that keeps another trial's results up to a phase and continues with other settings, and run it.

    Args:
        after: the last phase that both trials share: `baseline`, `prune`, `measure`, `grow` or `learn`; `prune@2` is
            that of cycle 2.
        overrides: `key=value` settings of the later phases.

    Raises:
        UsageError: as `resume`; or there is no such trial or phase, or a setting changes a phase that both share.
    """
    folder = SweepFolder.open(results, sweep)

    # The number of the new trial and its common phases are read under the lock.
    def propose(job: Job, fingerprints: Fingerprints) -> None:
        proposal = lifecycle.forked(folder, job, fingerprints, trial, after, overrides)
        with_modules(job, [proposal.values])
        folder.add_proposal(proposal)

    return go_on(folder, address=address, observer=observer, accept_new_code=accept_new_code, prepare=propose)


def retry(
    sweep: str,
    *,
    statuses: Sequence[Status] = ("FAILED",),
    accept_new_code: bool = False,
    address: str | None = None,
    results: Path = RESULTS,
    observer: Observer | None = None,
) -> SweepFolder:
    """Run failed or diverged trials again, each from its last checkpoint.

    Args:
        statuses: FAILED, DIVERGED, or both. A trial that diverged will diverge again, unless its machine was at fault.

    Raises:
        UsageError: as `resume`; or no trial has such a status.
    """
    folder = SweepFolder.open(results, sweep)

    def reopen(job: Job, fingerprints: Fingerprints) -> None:
        for trial in lifecycle.to_retry(folder, statuses):
            folder.reopen(trial)

    return go_on(folder, address=address, observer=observer, accept_new_code=accept_new_code, prepare=reopen)


def stop(sweep: str, *, results: Path = RESULTS, waiting: Callable[[float], None] = lambda seconds: None) -> bool:
    """Stop a running sweep, wherever its driver is, and wait until it has stopped; return False if it was not running.

    Args:
        waiting: called every second with the seconds waited so far; trials stop at their next step, with a checkpoint.

    Raises:
        ArchiveError: no such sweep.
    """
    return stop_and_wait(SweepFolder.open(results, sweep), waiting)


def gc(sweep: str, *, keep: Keep | None = None, dry_run: bool = False, results: Path = RESULTS) -> Survey:
    """Remove the checkpoints of a sweep that nothing needs; return which were kept and which were removed.

    Args:
        keep: how many to keep beside those that something refers to.
        dry_run: remove nothing.

    Raises:
        ArchiveError: no such sweep, or it is being run.
    """
    from raysweep.trial.store.garbage import Keep, collect, survey

    folder = SweepFolder.open(results, sweep)
    if dry_run:  # without the lock: a running sweep can be surveyed
        return survey(folder, keep or Keep())
    with held(folder):
        found = survey(folder, keep or Keep())
        collect(found)
    return found


def load(sweep: str, *, results: Path = RESULTS) -> SweepFolder:
    """Open a sweep's records to read them.

    Raises:
        ArchiveError: no such sweep.
    """
    return SweepFolder.open(results, sweep)


def repair(sweep: str, trial: int | None = None, *, results: Path = RESULTS, tell: Tell = str) -> list[Repaired]:
    """Run phases again whose checkpoints are damaged or gone; records stay as they are.

    Args:
        trial: look at the result of this trial alone, and regain it even if it was removed to free its space.

    Raises:
        UsageError: no such sweep, it is being run, or its job, code, model or corpus is not what it was.
        RunError: a phase could not be run.
    """
    return _repair(SweepFolder.open(results, sweep), trial, tell)


def export(
    sweep: str, trial: int, out: str | Path, *, format: Format = "compact", results: Path = RESULTS, tell: Tell = str
) -> Manifest:
    """Write a trial's model as a folder, with its tokenizer and a model card; return the content of its raysweep.json.

    A phase whose checkpoint is damaged or gone is run again first.

    Args:
        out: the folder; new, or empty.
        format: `compact` leaves absent heads out, for `load_model`; `dense` is for plain transformers.

    Raises:
        UsageError: no such trial, it did not complete, or the folder is not empty.
    """
    from raysweep.trial.exports.write import check_free
    from raysweep.trial.exports.write import export as write  # this function has the same name

    folder = SweepFolder.open(results, sweep)
    check_free(Path(out))
    regain(folder, trial, tell)
    return write(folder, trial, Path(out), format)


def load_model(folder: str | Path) -> Any:
    """Load the network of an exported folder, compact or dense, in evaluation mode; its weights are bit for bit those.

    Raises:
        ModelError: the folder was not written by `export`, or it is damaged.
    """
    from raysweep.trial.exports.load import load_model as read  # so has this one

    return read(folder)


def plan(
    job: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = (), trials: int | None = None,
    results: Path = RESULTS, calibrate: bool = False,
) -> tuple[Job, Estimate]:  # fmt: skip
    """Check a job and estimate what it would take; nothing is started.

    Args:
        calibrate: where no earlier sweep says how long a step takes, train a few steps here to measure it.

    Raises:
        UsageError: the job, or something it names, is wrong.
    """
    asked = load_job(job, _with_trials(overrides, trials))  # before the imports below, which take seconds
    from raysweep.sweep.foreseen import foreseen_points
    from raysweep.trial.forecast.earlier import earlier_phases
    from raysweep.trial.forecast.estimate import estimate
    from raysweep.trial.forecast.preflight import check

    # Points last: to draw them takes longer than to find what is wrong with the model or the data.
    found, past = check(asked), earlier_phases(results, asked)
    return asked, estimate(asked, found, past, points=foreseen_points(asked), calibrate=calibrate)


def _with_trials(overrides: Sequence[str], trials: int | None) -> list[str]:
    # Behind the others, so that it wins over --set search.trials.
    return [*overrides, *([f"search.trials={trials}"] if trials is not None else [])]
