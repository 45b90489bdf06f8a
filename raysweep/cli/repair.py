"""Commands on what is broken: repair and unlock."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from raysweep.cli.common import json_option, open_sweep, print_json, print_next, print_notes, results_option


@click.command()
@click.argument("sweep")
@click.argument("trial", type=int, required=False)
@results_option
@json_option
def repair(sweep: str, trial: int | None, results: Path, as_json: bool) -> None:
    """Run again what a sweep's checkpoints have lost.

    Every checkpoint is read; phases whose checkpoints are damaged or gone are run again, with the same outcome, bit for
    bit, or it says in what they differ, and exits with 1. With TRIAL, the result of that trial is regained, even if gc
    removed it. Runs here, on as many workers as the sweep had; records stay as they are.
    """
    from raysweep import api

    folder = open_sweep(results, sweep)  # before anything is read: a misspelt name is an error at once
    done = api.repair(folder.name, trial, results=results, tell=lambda text: print_notes([text]))
    if as_json:
        print_json([each.__dict__ for each in done])
    else:
        for each in done:
            outcome = f"DIFFERS in {', '.join(each.differs)}" if each.differs else "the same as recorded, bit for bit"
            click.echo(f"trial {each.trial}, {each.phase} ({each.key}): run again, {outcome}")
        click.echo(f"{sweep}: {len(done)} phases run again." if done else f"{sweep}: nothing is damaged or gone.")
        print_next(f"raysweep status {sweep} --check --deep")
    sys.exit(1 if any(each.differs for each in done) else 0)


@click.command()
@click.argument("sweep")
@click.option("--force", is_flag=True, help="Take a living owner's lock away, too. Only where you know it is gone.")
@results_option
@json_option
def unlock(sweep: str, force: bool, results: Path, as_json: bool) -> None:
    """Remove a dead owner's lock from a sweep, and say whose it was.

    An owner that died on this machine is known to be dead at once, one on another machine when it has not touched its
    lock for 90 seconds; `resume` then takes the lock by itself.
    """
    from raysweep.records.unlocking import unlock as remove

    found = remove(open_sweep(results, sweep), force=force)
    if as_json:
        print_json([{"lock": each.lock, "holder": str(each.holder), "dead": each.holder.dead} for each in found])
        return
    for each in found:
        state = "dead" if each.holder.dead else "not known to be dead"
        click.echo(f"{each.lock}: held by {each.holder} ({state}); removed")
    if not found:
        click.echo(f"{sweep}: no lock of a dead owner.")
    print_next(f"raysweep resume {sweep}")
