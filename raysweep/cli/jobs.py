"""Commands on job files, which start nothing: validate, plan and copy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from raysweep.cli.common import (
    QUICKSTART,
    command_on,
    console,
    json_option,
    print_json,
    print_next,
    print_notes,
    results_option,
    say,
    set_option,
    trials_option,
)


@click.command()
@click.argument("jobs", nargs=-1, required=True, type=click.Path(path_type=Path))
@set_option
@json_option
def validate(jobs: Sequence[Path], overrides: Sequence[str], as_json: bool) -> None:
    """Check job files completely: every fault at once.

    Models and corpora on this machine are checked too. Needs neither a cluster nor a network: what the hub has, and
    whether a corpus is long enough, only `raysweep plan` and `raysweep run` find out.
    """
    from raysweep.errors import SpecError
    from raysweep.job.jobfile import load_job

    faults = []
    for job in jobs:
        # A faulty job does not end the loop: the faults of all jobs are reported together.
        try:
            checked = load_job(job, overrides)
        except SpecError as error:
            faults += error.faults
            continue
        # Only a job without faults says for certain which model and which corpus it names. Imported here, since torch
        # takes seconds.
        from raysweep.trial.forecast.preflight import faults_here

        wrong, notes = faults_here(checked)
        print_notes([*checked.warnings, *notes])
        faults += wrong
    if as_json:
        print_json([fault.__dict__ for fault in faults])
    else:
        for fault in faults:
            say(f"error: {fault}", err=True)
        if not faults:
            say(f"{len(jobs)} job{'s' if len(jobs) != 1 else ''} valid.")
            # Both take a single job: of several, the first.
            print_next(*(command_on(name, jobs[0], overrides) for name in ("plan", "run")))
    sys.exit(2 if faults else 0)


@click.command()
@click.argument("job", default=QUICKSTART, type=click.Path(path_type=Path))
@set_option
@trials_option
@click.option(
    "--calibrate",
    is_flag=True,
    help="Without an earlier sweep to estimate the time from, train a few steps to measure it.",
)
@results_option
@json_option
def plan(
    job: Path, overrides: Sequence[str], trials: int | None, calibrate: bool, results: Path, as_json: bool
) -> None:  # fmt: skip
    """Show what a job would do and take, without starting it.

    Trials, phases, what is shared, and an estimate of time, memory and disk. JOB is a YAML file, or one of those that
    `raysweep list jobs` names; without it, jobs/quickstart.yaml.
    """
    from raysweep import api
    from raysweep.reports.tables.estimate import print_estimate

    checked, estimate = api.plan(job, overrides=overrides, trials=trials, results=results, calibrate=calibrate)
    print_notes(checked.warnings)
    if as_json:
        print_json(estimate.to_dict())
    else:
        print_estimate(checked.spec.resolved(), estimate.to_dict(), console())
        # With the same settings, so that what is run is what was planned.
        print_next(command_on("run", job, overrides, trials))


@click.command()
@click.argument("name")
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False), default=Path(), metavar="FOLDER",
    help="Where to write jobs/ and search_spaces/. Default: here.",
)  # fmt: skip
def copy(name: str, to: Path) -> None:
    """Write a job that ships with raysweep here, to edit it.

    NAME is one of those that `raysweep list jobs` names. The search space that the job names is written with it; a file
    that is here already is never overwritten.
    """
    from raysweep.job.copying import copy_shipped

    # Only what was written: a space that was copied before, and not edited, is not named again.
    for file in copy_shipped(name, to):
        say(f"wrote {file}")
    if Path(name).parent.name == "jobs":
        print_next(*(command_on(command, to / name, ()) for command in ("plan", "run")))
    else:
        # A space alone cannot be run: the quickstart serves as the job around it.
        print_next(command_on("plan", Path(QUICKSTART), [f"search.space={to / name}"]))
