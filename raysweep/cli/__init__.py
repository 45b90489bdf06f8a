"""The command line. Commands read options, call the API, and print; what is decided is decided below.

Results go to stdout, progress to stderr. Exit 0: done; 1: the run failed; 2: your file or arguments are wrong;
130: interrupted.
"""

from __future__ import annotations

from typing import Any

import click

from raysweep.cli import export, jobs, lifecycle, look, repair, settings, simulate
from raysweep.cli import run as work
from raysweep.cli.analyze import heads as analyze
from raysweep.cli.common import notes_of_damage, say
from raysweep.records.disk import UNUSABLE

# `work` and `analyze` are named apart from `run` and `heads`, which are commands in the modules of these names.

PLACES = (
    "Results go to --results (RAYSWEEP_RESULTS), prepared data to RAYSWEEP_CACHE, downloads to HF_HOME, temporary "
    "files to TMPDIR: choose another folder."
)


class _Commands(click.Group):
    """Commands in the order of their use; raysweep's errors become messages and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        # click would sort them by name.
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        # Imported when a command runs: `raysweep --help` should appear at once.
        from raysweep.errors import RaysweepError, SpecError

        try:
            with notes_of_damage():
                return super().invoke(ctx)
        except RaysweepError as error:
            # A line for each fault, so that every line starts with "error: ".
            for fault in error.faults if isinstance(error, SpecError) else [error]:
                say(f"error: {fault}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            # Not a bug, but a folder or a disk; only those of which it is clear what to do.
            if error.errno not in UNUSABLE or error.filename is None:
                raise
            say(f"error: {str(error.filename)!r} cannot be used ({error.strerror}). {PLACES}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            say("interrupted.", err=True)
            ctx.exit(130)  # 128 + SIGINT, as shells have it


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raysweep", prog_name="raysweep")
def main() -> None:
    """Sweep the plasticity of transformers: prune heads, measure, regrow, let them learn, and search over it all.

    Start with `raysweep run`, which runs jobs/quickstart.yaml; `raysweep list jobs` shows the other jobs.
    """


# In the order of `raysweep --help`.
for command in (
    work.run, lifecycle.resume, lifecycle.extend, lifecycle.fork, lifecycle.retry, lifecycle.stop, jobs.validate,
    jobs.plan, look.list_command, jobs.copy, look.status, look.show, look.tensorboard, export.export, lifecycle.gc,
    repair.repair, repair.unlock, analyze.analyze, simulate.simulate, settings.help_command, settings.schema,
    look.doctor,
):  # fmt: skip
    main.add_command(command)
