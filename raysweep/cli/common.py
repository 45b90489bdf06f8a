"""Share what commands need: options and printing."""

from __future__ import annotations

import json
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from raysweep.errors import DamagedWarning, UsageError
from raysweep.reports.wording import printable

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep.records.folder import SweepFolder

QUICKSTART = "jobs/quickstart.yaml"
"""The job that commands take when none is named; it ships with raysweep."""

results_option = click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
    envvar="RAYSWEEP_RESULTS", show_envvar=True, help="Folder of all sweeps.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of the job; may be repeated."
)
# RAY_ADDRESS is what Ray itself reads where no address is given.
address_option = click.option(
    "--address", envvar="RAY_ADDRESS", show_envvar=True,
    help="A reachable Ray cluster. Default: one is started here for this sweep.",
)  # fmt: skip


def _allow(context: click.Context, parameter: click.Parameter, modules: Sequence[str]) -> None:
    from raysweep.job.outside import allow

    allow(modules)


# In the environment, which the workers inherit: they import the modules, too.
allow_option = click.option(
    "--allow-module", "modules", multiple=True, metavar="MODULE", expose_value=False, callback=_allow,
    help="Allow strategies from this module or package to run; may be repeated. Others: RAYSWEEP_MODULES=a,b.",
)  # fmt: skip
trials_option = click.option("--trials", type=click.IntRange(min=1), help="Override search.trials.")


class NewFile(click.Path):
    """A file that is written at the end, in a folder that must exist at the start."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # Checked before the work: measuring may take minutes, which a missing folder would waste.
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            raise UsageError(f"--out {str(path)!r}: {str(path.parent)!r} is no folder. Make it first.")
        return path


@contextmanager
def notes_of_damage() -> Iterator[None]:
    """Print each warning of damaged records once, as a note."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, DamagedWarning):
            before(message, category, *where, **more)
        # A command may read a file several times.
        elif str(message) not in said:
            said.add(str(message))
            print_notes([str(message)])

    with warnings.catch_warnings():
        warnings.simplefilter("always", DamagedWarning)
        before, warnings.showwarning = warnings.showwarning, show
        yield


def open_sweep(results: Path, sweep: str) -> SweepFolder:
    """Open a sweep; a misspelt name is an error here, before a command imports torch."""
    from raysweep.records.folder import SweepFolder

    return SweepFolder.open(results, sweep)


def report_sweep(folder: SweepFolder, as_json: bool) -> None:
    """Print a sweep, why it stopped if it did, and the next useful commands."""
    from raysweep.records.silence import read_silent
    from raysweep.reports.summary import is_finished, next_commands, sweep_state
    from raysweep.reports.tables.sweep import print_sweep
    from raysweep.reports.wording import silent_lane
    from raysweep.sweep.limits import last_end, more_of

    state = sweep_state(folder)
    # A finished sweep may have met a limit with its last trial: nothing is left to do about that.
    end = None if is_finished(state) else last_end(folder)
    silent = read_silent(folder.path) if folder.running() else {}
    if as_json:
        # Next commands are for people: a script knows what it wants.
        print_json({**state, "stopped": end and end.ended, "silent": silent})
        return
    print_sweep(state, console())
    for lane, seconds in silent.items():
        click.echo(silent_lane(lane, seconds))
    commands = next_commands(state)
    if end is not None:
        say(f"stopped: {end.ended}.")
    if end is not None and end.limit is not None:
        # Resumed as it is, it would stop again at once: the first command raises the limit.
        commands[0] = f"raysweep resume {folder.name} --set {more_of(end.limit, folder.job())}"
    print_next(*commands)


def print_notes(texts: Sequence[str]) -> None:
    """Print notes about a job to stderr: not errors, but worth knowing."""
    for text in texts:
        say(f"note: {text}", err=True)


def print_next(*commands: str) -> None:
    """Print the commands that are useful next, each able to run as it stands."""
    say("next:  " + " · ".join(map(complete_command, commands)))


def complete_command(command: str) -> str:
    """Add the --results that this command was given to another command."""
    context = click.get_current_context()
    # One from RAYSWEEP_RESULTS is left out: the next command reads it, too.
    if context.get_parameter_source("results") is not ParameterSource.COMMANDLINE:
        return command
    return f"{command} --results {shlex.quote(str(context.params['results']))}"


def command_on(name: str, job: Path, overrides: Sequence[str], trials: int | None = None) -> str:
    """Write a command for the same job with the same settings, quoted for a shell."""
    settings = [argument for override in overrides for argument in ("--set", override)]
    settings += [] if trials is None else ["--trials", str(trials)]
    return shlex.join(["raysweep", name, str(job), *settings])


def say(text: str, err: bool = False) -> None:
    """Print a line, with control characters of what it names as escapes."""
    click.echo(printable(text), err=err)


def error_console() -> Console:
    """Return a console for stderr."""
    from raysweep.reports.console import SafeConsole

    return SafeConsole(stderr=True)


def console() -> Console:
    """Return a console for stdout."""
    from raysweep.reports.console import SafeConsole

    # In a pipe or a file Rich would assume 80 columns and fold cells: there, lines are as long as they need to be.
    return SafeConsole() if sys.stdout.isatty() else SafeConsole(width=10_000)


def print_json(content: Any) -> None:
    """Print JSON that any parser reads: json.dumps alone would write NaN and Infinity."""
    click.echo(json.dumps(strict(content), indent=2))


def report_drawn(
    content: Mapping[str, Any], out: Path | None, as_json: bool, *, default: str,
    draw: Callable[[Mapping[str, Any], Path], None], show: Callable[[Mapping[str, Any], Console], None],
    label: str = "picture",
) -> None:  # fmt: skip
    """Draw what was measured to `out`, or if a table is printed to `default`; print it as JSON or as a table."""
    # A script that asks for JSON gets no file that it did not ask for.
    path = out or (None if as_json else Path(default))
    if path is not None:
        draw(content, path)
    if as_json:
        print_json(content)
    else:
        show(content, console())
        say(f"{label}: {path}")


def strict(content: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by null."""
    if isinstance(content, Mapping):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
