"""What the commands share: options, how they print, how they are interrupted."""

from __future__ import annotations

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

from raysweep.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep.records.folder import SweepFolder

QUICKSTART = "jobs/quickstart.yaml"

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


class NewFile(click.Path):
    """A file to write at the end of the work, in a folder that is there when it begins."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            raise UsageError(f"--out {str(path)!r}: {str(path.parent)!r} is no folder. Make it first.")
        return path


def make_interruptible() -> None:
    """Raise KeyboardInterrupt on Ctrl-C and on the first SIGTERM: more of them must not cut short how Ray is ended."""

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def open_sweep(results: Path, sweep: str) -> SweepFolder:
    from raysweep.records.folder import SweepFolder

    return SweepFolder.open(results, sweep)


def report_sweep(folder: SweepFolder, as_json: bool) -> None:
    from raysweep.reports.summary import is_finished, next_commands, sweep_state
    from raysweep.reports.tables.sweep import print_sweep
    from raysweep.sweep.limits import last_end, more_of

    state = sweep_state(folder)
    end = None if is_finished(state) else last_end(folder)
    if as_json:
        print_json({**state, "stopped": end and end.ended})
        return
    print_sweep(state, console())
    commands = next_commands(state)
    if end is not None:
        click.echo(f"stopped: {end.ended}.")
    if end is not None and end.limit is not None:
        commands[0] = f"raysweep resume {folder.name} --set {more_of(end.limit, folder.job())}"
    print_next(*commands)


def print_notes(texts: Sequence[str]) -> None:
    """Say on stderr what is no fault of a job, but worth knowing."""
    for text in texts:
        click.echo(f"note: {text}", err=True)


def print_next(*commands: str) -> None:
    click.echo("next:  " + " · ".join(map(complete_command, commands)))


def complete_command(command: str) -> str:
    """Return a command with the --results that this one was given."""
    context = click.get_current_context()
    if context.get_parameter_source("results") is not ParameterSource.COMMANDLINE:
        return command
    return f"{command} --results {shlex.quote(str(context.params['results']))}"


def command_on(name: str, job: Path, overrides: Sequence[str], trials: int | None = None) -> str:
    """Write a command on the same job with the same settings."""
    settings = [argument for override in overrides for argument in ("--set", override)]
    settings += [] if trials is None else ["--trials", str(trials)]
    return shlex.join(["raysweep", name, str(job), *settings])


def console() -> Console:
    """A table is never cut: where nobody looks at a terminal, lines are as long as they need to be."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=10_000)


def print_json(content: Any) -> None:
    click.echo(json.dumps(strict(content), indent=2))


def report_drawn(
    content: Mapping[str, Any], out: Path | None, as_json: bool, *, default: str,
    draw: Callable[[Mapping[str, Any], Path], None], show: Callable[[Mapping[str, Any], Console], None],
    label: str = "picture",
) -> None:  # fmt: skip
    """Draw what was measured where `--out` says, or for a person at `default`; print it as JSON or as a table."""
    path = out or (None if as_json else Path(default))
    if path is not None:
        draw(content, path)
    if as_json:
        print_json(content)
    else:
        show(content, console())
        click.echo(f"{label}: {path}")


def strict(content: Any) -> Any:
    """Replace what JSON has no word for, infinity and NaN, by null."""
    if isinstance(content, Mapping):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
