"""Commands on a sweep that has begun: resume, extend, fork, retry, stop and gc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysweep.cli.common import (
    address_option,
    allow_option,
    console,
    error_console,
    json_option,
    open_sweep,
    print_json,
    print_next,
    report_sweep,
    results_option,
    say,
)
from raysweep.cli.run import run_and_report

if TYPE_CHECKING:
    from raysweep.records.folder import SweepFolder


accept_option = click.option(
    "--accept-new-code", is_flag=True,
    help="Go on although raysweep or a package it computes with changed; unfinished trials begin again.",
)  # fmt: skip


@click.command()
@click.argument("sweep")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Change a limit, such as budget.hours, scale.lanes or search.trials; may be repeated.",
)  # fmt: skip
@accept_option
@address_option
@allow_option
@results_option
@json_option
def resume(
    sweep: str, overrides: Sequence[str], accept_new_code: bool, address: str | None, results: Path, as_json: bool
) -> None:
    """Continue an interrupted sweep.

    Finished trials stay; the others continue from their last checkpoint. A resumed sweep may have another budget, more
    trials or other lanes. To change what its trials do, fork a trial or start a new sweep.
    """

    # A function, so that torch and Ray are imported inside `run_and_report`, which answers Ctrl-C from its start.
    def start(observer: Any) -> SweepFolder:
        from raysweep import api

        return api.resume(
            sweep,
            overrides=overrides,
            accept_new_code=accept_new_code,
            address=address,
            results=results,
            observer=observer,
        )

    # The same command can be given again. An extension or a fork cannot: it may have added its trials already.
    run_and_report(start, as_json, resumed=sweep)


# `--trials` is text: 8 and +8 mean different things.
@click.command()
@click.argument("sweep")
@click.option("--trials", required=True, metavar="[+]N", help="How many in all; with a +, how many more.")
@accept_option
@address_option
@allow_option
@results_option
@json_option
def extend(sweep: str, trials: str, accept_new_code: bool, address: str | None, results: Path, as_json: bool) -> None:
    """Give a sweep more trials, and run them.

    The sampler continues with the results of all earlier trials.
    """

    def start(observer: Any) -> SweepFolder:
        from raysweep import api

        return api.extend(
            sweep, trials, accept_new_code=accept_new_code, address=address, results=results, observer=observer
        )

    run_and_report(start, as_json)


@click.command()
@click.argument("sweep")
@click.argument("trial", type=int)
@click.option(
    "--after", required=True, metavar="PHASE",
    help="Keep the trial's results up to and including this phase: baseline, prune, measure, grow or learn; prune@2 is "
    "that of cycle 2.",
)  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, required=True, metavar="KEY=VALUE",
    help="Setting to change after that phase; may be repeated. Need not be in the search space.",
)  # fmt: skip
@accept_option
@address_option
@allow_option
@results_option
@json_option
def fork(
    sweep: str,
    trial: int,
    after: str,
    overrides: Sequence[str],
    accept_new_code: bool,
    address: str | None,
    results: Path,
    as_json: bool,
) -> None:
    """Run a trial on from one of its phases, with other settings.

    TRIAL is its number in the table. The fork is a new trial of the same sweep; the phases that both share are not run
    again.
    """

    def start(observer: Any) -> SweepFolder:
        from raysweep import api

        return api.fork(
            sweep,
            trial,
            after=after,
            overrides=overrides,
            accept_new_code=accept_new_code,
            address=address,
            results=results,
            observer=observer,
        )

    run_and_report(start, as_json)


@click.command()
@click.argument("sweep")
@click.option("--failed", is_flag=True, help="Retry the trials that FAILED.")
@click.option(
    "--diverged", is_flag=True, help="Retry the trials that DIVERGED. They will again, unless a machine was at fault."
)
@accept_option
@address_option
@allow_option
@results_option
@json_option
def retry(
    sweep: str, failed: bool, diverged: bool, accept_new_code: bool, address: str | None, results: Path, as_json: bool
) -> None:
    """Re-run failed or diverged trials.

    Each continues from its last checkpoint; --failed, --diverged or both say which ones.
    """
    chosen = (("FAILED", failed), ("DIVERGED", diverged))
    statuses: Any = [status for status, wanted in chosen if wanted]
    # No default: a diverged trial diverges again as a rule, and costs its steps again.
    if not statuses:
        raise click.UsageError("say which trials: --failed, --diverged, or both.")

    def start(observer: Any) -> SweepFolder:
        from raysweep import api

        return api.retry(
            sweep,
            statuses=statuses,
            accept_new_code=accept_new_code,
            address=address,
            results=results,
            observer=observer,
        )

    run_and_report(start, as_json)


@click.command()
@click.argument("sweep")
@results_option
@json_option
def stop(sweep: str, results: Path, as_json: bool) -> None:
    """Stop a running sweep, and wait until it has stopped.

    Its driver may run on any machine that shares the results folder. Trials stop within a few steps, with a checkpoint;
    `raysweep resume` continues from there.
    """
    from raysweep import api

    folder = open_sweep(results, sweep)
    # Only the last session can still run; an earlier one without an end was killed.
    at_work = [session for session in folder.sessions() if session.ended is None][-1:]
    driver = "".join(f" ({session.host}, process {session.pid})" for session in at_work)
    progress = error_console()
    with progress.status("") as status:
        told = False

        def waiting(seconds: float) -> None:
            nonlocal told
            # Said once, and only when a driver was found: `waiting` is not called for a sweep that does not run.
            if not told:
                progress.print(f"{sweep}{driver} was asked to stop", highlight=False)
            told = True
            status.update(f"waiting for {seconds:.0f} s")

        was_running = api.stop(sweep, results=results, waiting=waiting)
    # Not running is no error: the sweep is as stopped as was asked for.
    say(f"{sweep} has stopped." if was_running else f"{sweep} is not running.", err=True)
    report_sweep(folder, as_json)


@click.command()
@click.argument("sweep")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option(
    "--sweep-best", default=1, show_default=True, type=click.IntRange(min=1),
    help="Keep the results of so many best trials of the sweep.",
)  # fmt: skip
@click.option(
    "--trial-best", default=1, show_default=True, type=click.IntRange(min=0),
    help="Keep so many checkpoints of lowest loss of each trial.",
)  # fmt: skip
@click.option(
    "--trial-latest", default=1, show_default=True, type=click.IntRange(min=0),
    help="Keep so many latest checkpoints of each trial.",
)  # fmt: skip
@results_option
@json_option
def gc(
    sweep: str, dry_run: bool, sweep_best: int, trial_best: int, trial_latest: int, results: Path, as_json: bool
) -> None:
    """Remove checkpoints that nothing needs.

    Kept are those of the best trials, of trials that may continue, of exports, and those that several trials share; no
    record is ever removed. A checkpoint that is needed again later, by a fork for instance, is trained again.
    """
    from raysweep import api
    from raysweep.reports.tables.checkpoints import print_checkpoints
    from raysweep.trial.store.garbage import Keep

    open_sweep(results, sweep)  # before torch is imported: a misspelt name is an error at once
    keep = Keep(sweep_best=sweep_best, trial_best=trial_best, trial_latest=trial_latest)
    found = api.gc(sweep, keep=keep, dry_run=dry_run, results=results)
    content = {
        "sweep": sweep,
        "dry_run": dry_run,
        # A path is no JSON: it becomes text.
        **{
            name: [{**entry.__dict__, "path": str(entry.path)} for entry in getattr(found, name)]
            for name in ("kept", "collected")
        },
        "bytes_kept": sum(entry.bytes for entry in found.kept),
        "bytes_collected": sum(entry.bytes for entry in found.collected),
    }
    if as_json:
        print_json(content)
        return
    print_checkpoints(content, console())
    # The command that carries out this dry run, with the options that differ from their default.
    options = "".join(f" --{name.replace('_', '-')} {number}" for name, number in keep.__dict__.items() if number != 1)
    print_next(*([f"raysweep gc {sweep}{options}"] if dry_run and found.collected else []), f"raysweep status {sweep}")
