"""The command line.

Results go to stdout, progress to stderr. Exit 0: done; 1: the run failed; 2: your file or arguments are wrong;
130: interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep.archive import SweepFolder
    from raysweep.plan import TrialPlan

QUICKSTART = "jobs/quickstart.yaml"
ASK_ABOVE_SECONDS = 1800

results_option = click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
    envvar="RAYSWEEP_RESULTS", show_envvar=True, help="Folder of all sweeps.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of the job; may be repeated."
)
address_option = click.option(
    "--address", envvar="RAY_ADDRESS", show_envvar=True,
    help="A reachable Ray cluster. Default: one is started here for this sweep.",
)  # fmt: skip
trials_option = click.option("--trials", type=click.IntRange(min=1), help="Override search.trials.")


class _Commands(click.Group):
    """Commands in the order in which one meets them; raysweep's errors become one message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        from raysweep.errors import RaysweepError, SpecError

        try:
            return super().invoke(ctx)
        except RaysweepError as error:
            for fault in error.faults if isinstance(error, SpecError) else [error]:
                click.echo(f"error: {fault}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted.", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raysweep", prog_name="raysweep")
def main() -> None:
    """Sweep the plasticity of transformers: prune heads, measure, regrow, let them learn, and search over it all.

    Start with `raysweep run`, which runs jobs/quickstart.yaml.
    """


@main.command()
@click.argument("job", default=QUICKSTART, type=click.Path(path_type=Path))
@set_option
@trials_option
@address_option
@click.option("--name", help="Name of the sweep. Default: <job>-<number>.")
@click.option("--no-sharing", is_flag=True, help="Run every phase of every trial; share nothing between trials.")
@click.option("--yes", is_flag=True, help="Do not ask before a sweep of more than half an hour.")
@results_option
@json_option
def run(
    job: Path, overrides: Sequence[str], trials: int | None, address: str | None, name: str | None, no_sharing: bool,
    yes: bool, results: Path, as_json: bool,
) -> None:  # fmt: skip
    """Run a sweep, here or on a reachable cluster.

    JOB is a YAML file; without it, jobs/quickstart.yaml is run. Ends with the table that `raysweep status` shows.
    """
    if str(job) == QUICKSTART and not job.is_file():
        raise click.UsageError(f"no {QUICKSTART} here. Run this in a clone of raysweep, or name a job file.")

    def start(observer: Any) -> SweepFolder:
        from raysweep import api

        return api.run(
            job, overrides=overrides, trials=trials, address=address, name=name, results=results,
            sharing=not no_sharing, observer=observer,
        )  # fmt: skip

    if sys.stdin.isatty() and not yes:
        _ask_before_long_work(job, overrides, trials, results)
    _run_and_report(start, as_json)


@main.command()
@click.argument("sweep")
@address_option
@results_option
@json_option
def resume(sweep: str, address: str | None, results: Path, as_json: bool) -> None:
    """Continue an interrupted sweep.

    Finished trials stay; the others go on from their last checkpoint.
    """

    def start(observer: Any) -> SweepFolder:
        from raysweep import api

        return api.resume(sweep, address=address, results=results, observer=observer)

    _run_and_report(start, as_json)


@main.command()
@click.argument("jobs", nargs=-1, required=True, type=click.Path(path_type=Path))
@set_option
@json_option
def validate(jobs: Sequence[Path], overrides: Sequence[str], as_json: bool) -> None:
    """Check job files whole: every fault at once.

    Needs neither a cluster nor a network: whether a model or a corpus can be had is for `raysweep plan` and
    `raysweep run` to find out.
    """
    from raysweep.errors import SpecError
    from raysweep.jobfile import load_job

    faults = []
    for job in jobs:
        try:
            load_job(job, overrides)
        except SpecError as error:
            faults += error.faults
    if as_json:
        _print_json([fault.__dict__ for fault in faults])
    else:
        for fault in faults:
            click.echo(f"error: {fault}", err=True)
        if not faults:
            click.echo(f"{len(jobs)} job{'s' if len(jobs) != 1 else ''} valid.")
            _print_next(*(_command(name, jobs[0], overrides) for name in ("plan", "run")))
    sys.exit(2 if faults else 0)


@main.command()
@click.argument("job", default=QUICKSTART, type=click.Path(path_type=Path))
@set_option
@trials_option
@results_option
@json_option
def plan(job: Path, overrides: Sequence[str], trials: int | None, results: Path, as_json: bool) -> None:
    """Show what a job would do and take; start nothing.

    Trials, phases, what is shared, and an estimate of time, memory and disk. Without JOB, of jobs/quickstart.yaml.
    """
    from raysweep import api
    from raysweep.reports.tables import print_estimate

    checked, estimate = api.plan(job, overrides=overrides, trials=trials, results=results)
    if as_json:
        _print_json(estimate.to_dict())
    else:
        print_estimate(checked.spec.resolved(), estimate.to_dict(), _console())
        _print_next(_command("run", job, overrides, trials))


@main.command("list")
@click.argument("kind", required=False)
@results_option
@json_option
def list_command(kind: str | None, results: Path, as_json: bool) -> None:
    """List what can be named in a job, and sweeps.

    KIND is one of prune, grow, init, samplers, models, data and sweeps; without it, all are listed.
    """
    from raysweep.listing import listing
    from raysweep.reports.tables import print_listing

    content = listing(kind, results)
    if as_json:
        _print_json(content)
    else:
        print_listing(content, _console())
        sweeps = [f"raysweep status {sweep['name']}" for sweep in content.get("sweeps", [])[-1:]]
        _print_next("raysweep plan", *sweeps)


@main.command()
@click.argument("sweep")
@results_option
@json_option
def status(sweep: str, results: Path, as_json: bool) -> None:
    """Show how far a sweep has come.

    Read-only: any sweep can be looked at, running or not.
    """
    _report(_open(results, sweep), as_json)


@main.command()
@click.argument("sweep")
@click.argument("trial", type=int, required=False)
@results_option
@json_option
def show(sweep: str, trial: int | None, results: Path, as_json: bool) -> None:
    """Show a sweep, or one of its trials.

    TRIAL is its number in the table; shown are its values, phases, decisions, heads and samples. Read-only.
    """
    from raysweep.reports.summary import trial_state
    from raysweep.reports.tables import print_trial

    folder = _open(results, sweep)
    if trial is None:
        _report(folder, as_json)
        return
    state = trial_state(folder, trial)
    if as_json:
        _print_json(state)
    else:
        print_trial(state, _console())
        _print_next(f"raysweep status {sweep}", f"raysweep tensorboard {sweep}")


@main.command()
@click.argument("sweeps", nargs=-1)
@click.option(
    "--port", default=6006, show_default=True, type=click.IntRange(1, 65535), help="Where TensorBoard listens."
)
@results_option
def tensorboard(sweeps: Sequence[str], port: int, results: Path) -> None:
    """Open TensorBoard on exactly these sweeps.

    Without SWEEPS, on all of them. It answers on this machine only.
    """
    from raysweep.archive import list_sweeps
    from raysweep.errors import ArchiveError
    from raysweep.reports.tensorboard import serve, serve_folder

    folders = {name: _open(results, name).path / "tensorboard" for name in (sweeps or list_sweeps(results))}
    if not sweeps:  # one that never began has nothing to show
        folders = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if not folders:
        raise ArchiveError(f"no sweep in {str(results)!r} yet. Start one with 'raysweep run'.")
    _make_interruptible()  # or TensorBoard would outlive a terminated raysweep
    with serve_folder(folders) as logdir:
        server = serve(logdir, port)
        click.echo(f"TensorBoard on {', '.join(folders)}: http://127.0.0.1:{port}  (stop with Ctrl-C)", err=True)
        try:
            sys.exit(server.wait())
        except KeyboardInterrupt:
            server.terminate()
            server.wait()


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what is missing.

    Exits with 1 where something keeps `raysweep run` from working.
    """
    from raysweep.doctor import examine
    from raysweep.reports.tables import print_examination

    findings = examine()
    broken = any(finding.status == "bad" for finding in findings)
    if as_json:
        _print_json([finding.__dict__ for finding in findings])
    else:
        print_examination(findings, _console())
        if not broken:
            _print_next("raysweep run")
    sys.exit(1 if broken else 0)


def _ask_before_long_work(job: Path, overrides: Sequence[str], trials: int | None, results: Path) -> None:
    from raysweep import api
    from raysweep.reports.progress import duration

    _, estimate = api.plan(job, overrides=overrides, trials=trials, results=results)
    if estimate.seconds is not None and estimate.seconds > ASK_ABOVE_SECONDS:
        click.confirm(f"{estimate.trials} trials, about {duration(estimate.seconds)}. Start?", abort=True, err=True)


def _run_and_report(start: Callable[[Any], SweepFolder], as_json: bool) -> None:
    """Run with progress on stderr; on Ctrl-C or SIGTERM, say how to go on."""
    from rich.console import Console

    from raysweep.reports.progress import Progress

    class Watcher(Progress):
        def trial_started(self, plan: TrialPlan) -> None:
            _make_interruptible()  # once more: Ray has started since, and taken SIGTERM for itself
            super().trial_started(plan)

    _make_interruptible()
    progress = Watcher(Console(stderr=True))
    try:
        # Ray prints to stdout when a worker dies; stdout is for results. The live line, which borrows it, ends first.
        with contextlib.redirect_stdout(sys.stderr), progress:
            folder = start(progress)
    except KeyboardInterrupt:
        way_on = f" Go on with: {_complete(f'raysweep resume {progress.sweep}')}" if progress.sweep else ""
        click.echo(f"interrupted.{way_on}", err=True)
        sys.exit(130)
    _report(folder, as_json)
    if not any(record.status == "COMPLETE" for record in folder.trials().values()):
        sys.exit(1)


def _make_interruptible() -> None:
    """Raise KeyboardInterrupt on Ctrl-C and on the first SIGTERM: more of them must not cut short how Ray is ended."""

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def _open(results: Path, sweep: str) -> SweepFolder:
    from raysweep.archive import SweepFolder

    return SweepFolder.open(results, sweep)


def _report(folder: SweepFolder, as_json: bool) -> None:
    from raysweep.reports.summary import next_commands, sweep_state
    from raysweep.reports.tables import print_sweep

    state = sweep_state(folder)
    if as_json:
        _print_json(state)
    else:
        print_sweep(state, _console())
        _print_next(*next_commands(state))


def _print_next(*commands: str) -> None:
    click.echo("next:  " + " · ".join(map(_complete, commands)))


def _complete(command: str) -> str:
    """Return a command with the --results that this one was given."""
    context = click.get_current_context()
    if context.get_parameter_source("results") is not ParameterSource.COMMANDLINE:
        return command
    return f"{command} --results {shlex.quote(str(context.params['results']))}"


def _command(name: str, job: Path, overrides: Sequence[str], trials: int | None = None) -> str:
    """Write a command on the same job with the same settings."""
    settings = [argument for override in overrides for argument in ("--set", override)]
    settings += [] if trials is None else ["--trials", str(trials)]
    return shlex.join(["raysweep", name, str(job), *settings])


def _console() -> Console:
    """A table is never cut: where nobody looks at a terminal, lines are as long as they need to be."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=10_000)


def _print_json(content: Any) -> None:
    click.echo(json.dumps(_strict(content), indent=2))


def _strict(content: Any) -> Any:
    """Replace what JSON has no word for, infinity and NaN, by null."""
    if isinstance(content, Mapping):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
