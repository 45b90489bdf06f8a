"""The command that starts a sweep, and what it shares with other commands that run one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from raysweep.cli.common import (
    QUICKSTART,
    address_option,
    allow_option,
    complete_command,
    error_console,
    json_option,
    report_sweep,
    results_option,
    say,
    set_option,
    trials_option,
)
from raysweep.cluster.waiting import unfinished
from raysweep.sweep import signals

if TYPE_CHECKING:
    from raysweep.records.folder import SweepFolder

ASK_ABOVE_SECONDS = 1800
"""A sweep that is estimated to take longer is confirmed by a person first."""


@click.command()
@click.argument("job", default=QUICKSTART, type=click.Path(path_type=Path))
@set_option
@trials_option
@address_option
@allow_option
@click.option("--name", help="Name of the sweep. Default: <job>-<number>.")
@click.option("--no-sharing", is_flag=True, help="Run every phase of every trial: reuse no outcome of another.")
@click.option(
    "--private",
    is_flag=True,
    envvar="RAYSWEEP_PRIVATE",
    show_envvar=True,
    help="Let nobody else on this machine look into the sweep's folder, whatever the umask allows.",
)
@click.option("--yes", is_flag=True, help="Do not show the plan, and do not ask before more than half an hour of work.")
@results_option
@json_option
def run(
    job: Path, overrides: Sequence[str], trials: int | None, address: str | None, name: str | None, no_sharing: bool,
    private: bool, yes: bool, results: Path, as_json: bool,
) -> None:  # fmt: skip
    """Run a sweep, here or on a reachable cluster.

    JOB is a YAML file, or one of those that `raysweep list jobs` names; without it, jobs/quickstart.yaml is run. Ends
    with the table that `raysweep status` shows.
    """

    # Not called before the plan was shown; `run_and_report` hands in the observer that prints progress.
    def start(observer: Any) -> SweepFolder:
        from raysweep import api

        return api.run(
            job, overrides=overrides, trials=trials, address=address, name=name, results=results,
            sharing=not no_sharing, private=private, observer=observer,
        )  # fmt: skip

    # Where no person is at the terminal, there is nobody to ask, and a plan would only cost time.
    if sys.stdin.isatty() and not yes:
        _show_plan(job, overrides, trials, results)
    run_and_report(start, as_json)


def _show_plan(job: Path, overrides: Sequence[str], trials: int | None, results: Path) -> None:
    """Show a person the plan, and ask before a long run."""
    from raysweep import api
    from raysweep.reports.tables.estimate import print_estimate

    checked, estimate = api.plan(job, overrides=overrides, trials=trials, results=results)
    # To stderr: stdout holds the result of the sweep alone, perhaps as JSON.
    print_estimate(checked.spec.resolved(), estimate.to_dict(), error_console())
    if estimate.seconds is not None and estimate.seconds > ASK_ABOVE_SECONDS:
        click.confirm("Proceed?", default=True, abort=True, err=True)


def run_and_report(start: Callable[[Any], SweepFolder], as_json: bool, *, resumed: str | None = None) -> None:
    """Run a sweep with progress on stderr; where it is interrupted or fails, print the command that continues it.

    Args:
        resumed: the sweep that is resumed; that can be repeated even if it was interrupted before it began.
    """
    from raysweep.errors import RunError
    from raysweep.reports.live.progress import Progress

    progress = Progress(error_console())

    # The sweep has a name from the moment its folder was written: from then on it can be resumed.
    def parting() -> str:
        return f"interrupted.{_way_on(progress.sweep or resumed)}"

    try:
        # Ray prints to stdout when a worker dies; stdout is for results. The live line, which borrows it, ends first.
        with signals.noted(parting), contextlib.redirect_stdout(sys.stderr), progress:
            folder = start(progress)
    except RunError as error:
        say(f"error: {error}{_way_on(progress.sweep or resumed)}", err=True)
        _leave(error.exit_code)
    # Where the signal came with the last trial, the sweep is done all the same.
    if signals.received() is not None and not _is_finished(folder):
        say(parting(), err=True)
        _leave(signals.INTERRUPTED)
    report_sweep(folder, as_json)
    # Some failed trials are part of a search; a sweep without a single result has failed.
    _leave(0 if any(record.status == "COMPLETE" for record in folder.trials().values()) else 1)


def _is_finished(folder: SweepFolder) -> bool:
    from raysweep.reports.summary import is_finished, sweep_state

    return is_finished(sweep_state(folder))


def _leave(code: int) -> NoReturn:
    """End the process; a call of Ray that never returns does not keep it."""
    if unfinished():
        sys.stdout.flush()
        sys.stderr.flush()
        # Ray would wait for it once more when Python ends.
        os._exit(code)
    sys.exit(code)


def _way_on(sweep: str | None) -> str:
    """Return how to continue a sweep; "" where none was begun."""
    return f" Go on with: {complete_command(f'raysweep resume {sweep}')}" if sweep else ""
