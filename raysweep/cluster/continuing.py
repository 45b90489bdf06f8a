"""Run on a sweep that has begun, after its job, its trials and its code were checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from raysweep.cluster.ownership import driving
from raysweep.job import code
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints
from raysweep.records.folder import SweepFolder
from raysweep.reports.live.progress import Silent
from raysweep.sweep.code import check_code, code_of, record_code
from raysweep.sweep.lifecycle import check_same
from raysweep.sweep.mending import mended_job
from raysweep.sweep.observer import Observer


def go_on(
    folder: SweepFolder,
    *,
    address: str | None,
    observer: Observer | None = None,
    accept_new_code: bool,
    change: Callable[[Job], Job] = lambda job: job,
    prepare: Callable[[Job, Fingerprints], None] = lambda job, fingerprints: None,
) -> SweepFolder:
    """Change the limits of a sweep's job, prepare its trials, and run those that are left.

    Raises:
        UsageError: a change is refused, or the code changed and that is not accepted; the sweep stays as it was.
    """
    code.read_again()
    watching = observer or Silent()
    with driving(folder):  # from here on no other process can run or change the sweep: what is checked stays true
        about = folder.environment()
        before, mended = mended_job(folder, _open_points)
        if mended:
            watching.mended(mended)
        check_same(folder, before)
        job = change(before)
        # Before the model and the data are looked at: other code may see other data in the same files.
        changed = check_code(folder, _code_here(folder, job), accept=accept_new_code)
        # Imported only now, since torch and Ray take seconds: whoever is refused above learns it at once.
        from raysweep.cluster.connection import check_local_room
        from raysweep.cluster.driver import run_sweep
        from raysweep.trial.forecast.preflight import check_unchanged

        if address is None:
            check_local_room(job)
        fingerprints = check_unchanged(job, about, folder.name)
        if changed:
            watching.code_changed(changed)
        # Nothing is written before every check has passed.
        prepare(job, fingerprints)
        if job is not before:
            folder.replace_job(job)
        _record(folder, job, changed=bool(changed))
        # With or without sharing, as it began: its records must count the same work throughout.
        run_sweep(folder, job, fingerprints, address=address, sharing=about["sharing"], observer=watching)
    return folder


def _record(folder: SweepFolder, job: Job, changed: bool) -> None:
    # The code once more, since a fork may have brought strategies along.
    record_code(folder, _code_here(folder, job), changed=changed)
    if changed:
        # The open trials begin again, and what they report is for the stopping rule to see anew.
        folder.void_reports(sorted(folder.proposals().keys() - folder.trials().keys()))


def _code_here(folder: SweepFolder, job: Job) -> dict[str, str]:
    return code_of(job, _open_points(folder))


def _open_points(folder: SweepFolder) -> list[Mapping[str, Any]]:
    """Return the values of the trials that are left."""
    # Of trials that have ended nothing is run any more: a strategy that only they name need not be here.
    ended = folder.trials()
    return [each.values for trial, each in folder.proposals().items() if trial not in ended]
