"""Commands on a sweep that has begun: resume, extend, fork, retry, stop and gc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysweep.cli.common import (
    address_option,
    console,
    json_option,
    open_sweep,
    print_json,
    print_next,
    report_sweep,
    results_option,
)
from raysweep.cli.run import run_and_report

if TYPE_CHECKING:
    from raysweep.records.folder import SweepFolder
    from raysweep.trial.store.garbage import Survey


accept_option = click.option(
    "--accept-new-code", is_flag=True,
    help="Go on although raysweep, torch or transformers changed since the sweep began.",
)  # fmt: skip


@click.command()
@click.argument("sweep")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Give the sweep another limit, such as budget.hours or scale.lanes; may be repeated.",
)  # fmt: skip
@accept_option
@address_option
@results_option
@json_option
def resume(
    sweep: str, overrides: Sequence[str], accept_new_code: bool, address: str | None, results: Path, as_json: bool
) -> None:
    """Continue an interrupted sweep.

    Finished trials stay; the others go on from their last checkpoint. A resumed sweep may be given another budget, more
    trials or other lanes, but not another meaning: for that, fork a trial or start a new sweep.
    """

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

    run_and_report(start, as_json, resumed=sweep)


@click.command()
@click.argument("sweep")
@click.option("--trials", required=True, metavar="[+]N", help="How many in all; with a +, how many more.")
@accept_option
@address_option
@results_option
@json_option
def extend(sweep: str, trials: str, accept_new_code: bool, address: str | None, results: Path, as_json: bool) -> None:
    """Give a sweep more trials, and run them.

    The sampler goes on with all that it was told before.
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
    help="The last phase that both have: baseline, prune, measure, grow or learn; prune@2 is that of cycle 2.",
)  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, required=True, metavar="KEY=VALUE",
    help="What the fork does otherwise in later phases; may be repeated. Need not be in the search space.",
)  # fmt: skip
@accept_option
@address_option
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

    TRIAL is its number in the table. The fork is a new trial of the same sweep; what both have in common is not run
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
    "--diverged", is_flag=True, help="Retry those that DIVERGED; they will again, unless a machine was at fault."
)
@accept_option
@address_option
@results_option
@json_option
def retry(
    sweep: str, failed: bool, diverged: bool, accept_new_code: bool, address: str | None, results: Path, as_json: bool
) -> None:
    """Run trials once more that came to no good end.

    Each goes on from its last checkpoint; say which ones with --failed or --diverged.
    """
    chosen = (("FAILED", failed), ("DIVERGED", diverged))
    statuses: Any = [status for status, wanted in chosen if wanted]
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
    """Ask a running sweep to stop, and wait until it has.

    Wherever it runs, its trials stop within a few steps, with a checkpoint; `raysweep resume` goes on from there.
    """
    from rich.console import Console

    from raysweep import api

    folder = open_sweep(results, sweep)
    at_work = [session for session in folder.sessions() if session.ended is None][-1:]
    driver = "".join(f" ({session.host}, process {session.pid})" for session in at_work)
    progress = Console(stderr=True)
    with progress.status("") as status:
        told = False

        def waiting(seconds: float) -> None:
            nonlocal told
            if not told:
                progress.print(f"{sweep}{driver} was asked to stop", highlight=False)
            told = True
            status.update(f"waiting for {seconds:.0f} s")

        was_running = api.stop(sweep, results=results, waiting=waiting)
    click.echo(f"{sweep} has stopped." if was_running else f"{sweep} is not running.", err=True)
    report_sweep(folder, as_json)


@click.command()
@click.argument("sweep")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@click.option(
    "--sweep-best", default=1, show_default=True, type=click.IntRange(min=1),
    help="Best trials of the sweep whose result stays.",
)  # fmt: skip
@click.option(
    "--trial-best", default=1, show_default=True, type=click.IntRange(min=0),
    help="Checkpoints of lowest loss that stay of each trial.",
)  # fmt: skip
@click.option(
    "--trial-latest", default=1, show_default=True, type=click.IntRange(min=0),
    help="Latest checkpoints that stay of each trial.",
)  # fmt: skip
@results_option
@json_option
def gc(
    sweep: str, dry_run: bool, sweep_best: int, trial_best: int, trial_latest: int, results: Path, as_json: bool
) -> None:
    """Free the space of checkpoints that nothing needs.

    Never those of the best trials, of a trial that may go on, of an export, nor what several trials share; and never a
    record. What is needed again later, by a fork for instance, is trained again.
    """
    from raysweep import api
    from raysweep.trial.store.garbage import Keep

    open_sweep(results, sweep)
    keep = Keep(sweep_best=sweep_best, trial_best=trial_best, trial_latest=trial_latest)
    found = api.gc(sweep, keep=keep, dry_run=dry_run, results=results)
    if as_json:
        print_json(
            {
                "sweep": sweep,
                "dry_run": dry_run,
                **{
                    name: [{**entry.__dict__, "path": str(entry.path)} for entry in getattr(found, name)]
                    for name in ("kept", "collected")
                },
                "bytes_kept": sum(entry.bytes for entry in found.kept),
                "bytes_collected": sum(entry.bytes for entry in found.collected),
            }
        )
        return
    _print(found, dry_run)
    options = "".join(f" --{name.replace('_', '-')} {number}" for name, number in keep.__dict__.items() if number != 1)
    print_next(*([f"raysweep gc {sweep}{options}"] if dry_run and found.collected else []), f"raysweep status {sweep}")


def _print(found: Survey, dry_run: bool) -> None:
    from rich.table import Table

    if found.collected:
        table = Table("phase", "trials", "size", "why", box=None)
        for entry in found.collected:
            table.add_row(entry.phase, ", ".join(map(str, entry.trials)), _bytes(entry.bytes), entry.why)
        console().print(table)
    freed, kept = (sum(entry.bytes for entry in part) for part in (found.collected, found.kept))
    said = "would be freed" if dry_run else "freed"
    stay = "1 checkpoint stays" if len(found.kept) == 1 else f"{len(found.kept)} checkpoints stay"
    click.echo(f"{_bytes(freed)} {said}, {_bytes(kept)} in {stay}.")


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
