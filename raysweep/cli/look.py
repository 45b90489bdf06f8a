"""Commands that look: list, status, show, tensorboard and doctor."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raysweep.cli.common import (
    QUICKSTART,
    console,
    json_option,
    open_sweep,
    print_json,
    print_next,
    report_sweep,
    results_option,
    say,
)
from raysweep.sweep import signals

if TYPE_CHECKING:
    from raysweep.records.folder import SweepFolder

LOOK_S = 0.1
"""Seconds between two looks at a process that is waited for."""


@click.command("list")
@click.argument("kind", required=False)
@results_option
@json_option
def list_command(kind: str | None, results: Path, as_json: bool) -> None:
    """List what can be named in a job, jobs and sweeps.

    KIND is one of prune, grow, init, samplers, schedulers, tasks, exits, analyses, models, data, jobs and sweeps;
    without it, all are listed. Jobs in ./jobs come before those that ship with raysweep.
    """
    from raysweep.cli.listing import listing
    from raysweep.reports.tables.listing import print_listing

    content = listing(kind, results)
    if as_json:
        print_json(content)
        return
    print_listing(content, console())
    if kind == "jobs":
        # Not by print_next: it hands --results on, which `copy` does not take.
        say(f"next:  raysweep plan {QUICKSTART} · raysweep copy {QUICKSTART}")
    else:
        sweeps = [f"raysweep status {sweep['name']}" for sweep in content.get("sweeps", [])[-1:]]
        print_next("raysweep plan", *sweeps)


@click.command()
@click.argument("sweep")
@click.option("--check", is_flag=True, help="Check the invariants of its records, store and processes instead.")
@click.option("--deep", is_flag=True, help="With --check: read every checkpoint, too, which takes long.")
@results_option
@json_option
def status(sweep: str, check: bool, deep: bool, results: Path, as_json: bool) -> None:
    """Show how far a sweep has come.

    Read-only: works on any sweep, running or not. With --check, exits with 1 where an invariant is broken.
    """
    if deep and not check:
        raise click.UsageError("--deep says how to check: give --check, too.")
    folder = open_sweep(results, sweep)
    if check:
        _check(folder, deep, as_json)
    else:
        report_sweep(folder, as_json)


def _check(folder: SweepFolder, deep: bool, as_json: bool) -> None:
    from raysweep.reports.tables.invariants import print_invariants
    from raysweep.sweep.invariants import examine

    found = examine(folder, deep)
    # Read-only as all of `status`: what is broken is named, and not repaired.
    if as_json:
        print_json(found)
    else:
        print_invariants(found, console())
        print_next(f"raysweep status {folder.name}")
    # So that a script, such as a nightly check of a results folder, need not read the text.
    sys.exit(1 if any(found["invariants"].values()) else 0)


@click.command()
@click.argument("sweep")
@click.argument("trial", type=int, required=False)
@results_option
@json_option
def show(sweep: str, trial: int | None, results: Path, as_json: bool) -> None:
    """Show a sweep, or one of its trials.

    TRIAL is its number in the table. Prints its values, phases, decisions, heads and samples, and where the job
    measures contributions, how far each score agrees with them. Read-only.
    """
    from raysweep.reports.summary import trial_state
    from raysweep.reports.tables.trial import print_trial

    folder = open_sweep(results, sweep)
    if trial is None:
        report_sweep(folder, as_json)
        return
    state = trial_state(folder, trial)
    if as_json:
        print_json(state)
    else:
        print_trial(state, console())
        print_next(f"raysweep status {sweep}", f"raysweep tensorboard {sweep}")


@click.command()
@click.argument("sweeps", nargs=-1)
# 6006 is TensorBoard's own default.
@click.option(
    "--port", default=6006, show_default=True, type=click.IntRange(1, 65535), help="Where TensorBoard listens."
)
@results_option
def tensorboard(sweeps: Sequence[str], port: int, results: Path) -> None:
    """Open TensorBoard on exactly these sweeps.

    Without SWEEPS, on all of them. It answers on this machine only.
    """
    from raysweep.errors import ArchiveError
    from raysweep.records.results import list_sweeps
    from raysweep.reports.tensorboard.server import serve, serve_folder

    folders = {name: open_sweep(results, name).path / "tensorboard" for name in (sweeps or list_sweeps(results))}
    # A sweep that never began has nothing to show. Left out of all, it is an error where it was named.
    if not sweeps:
        folders = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if not folders:
        raise ArchiveError(f"no sweep in {str(results)!r} yet. Start one with 'raysweep run'.")
    # A signal would end raysweep alone, and leave TensorBoard on its port.
    with serve_folder(folders) as logdir, signals.noted(lambda: "interrupted."), signals.watched():
        server = serve(logdir, port)
        # To stderr, as all progress.
        say(f"TensorBoard on {', '.join(folders)}: http://127.0.0.1:{port}  (stop with Ctrl-C)", err=True)
        while server.poll() is None and signals.received() is None:
            time.sleep(LOOK_S)
        if server.poll() is not None:
            # With TensorBoard's own exit code: on stderr it says why it could not start, as where the port is taken.
            sys.exit(server.returncode)
        server.terminate()
        server.wait()  # it reads the temporary folder, which is removed next


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check what this machine can do, and what is missing.

    Exits with 1 where something keeps `raysweep run` from working.
    """
    from raysweep.cluster.doctor import examine
    from raysweep.reports.tables.listing import print_examination

    findings = examine()
    # Notes, such as a missing GPU, keep nothing from running.
    broken = any(finding.status == "bad" for finding in findings)
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        print_examination(findings, console())
        if not broken:
            print_next("raysweep run")
    sys.exit(1 if broken else 0)
