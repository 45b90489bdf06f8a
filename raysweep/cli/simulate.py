"""The command that runs a sweep in virtual time, with losses that are made up and workers that are killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raysweep.cli.common import (
    allow_option,
    console,
    json_option,
    print_json,
    results_option,
    say,
    set_option,
    trials_option,
)

if TYPE_CHECKING:
    from raysweep.job.jobfile import Job
    from raysweep.sweep.simulation.curves import Curves

NEWS_S = 2.0
"""How often a long simulation says how far it is."""
SHARE = click.FloatRange(0, 1)


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@set_option
@trials_option
@click.option("--lanes", type=click.IntRange(min=1), help="Override scale.lanes.")
@click.option("--kill", type=SHARE, default=0.0, show_default=True, help="Share of phases whose worker is killed.")
@click.option("--stragglers", type=SHARE, default=0.1, show_default=True, help="Share of lanes that are 3x slower.")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Draws which workers are killed, and which lanes are slow.",
)
@click.option("--from", "source", metavar="SWEEP", help="Take curves from an earlier sweep. Default: made-up ones.")
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Folder to leave the simulated sweep in."
)
@allow_option
@results_option
@json_option
def simulate(
    job: Path, overrides: Sequence[str], trials: int | None, lanes: int | None, kill: float, stragglers: float,
    seed: int, source: str | None, keep: Path | None, results: Path, as_json: bool,
) -> None:  # fmt: skip
    """Run a job in virtual time, and check the invariants of sweeps.

    The sampler, the stopping rule and the sharing of phases are the real ones; losses and times are made up. Nothing is
    trained. Exits with 1 where an invariant is broken.
    """
    from raysweep.job.jobfile import load_job
    from raysweep.reports.tables.simulation import print_simulation
    from raysweep.sweep.simulation.run import simulate as run
    from raysweep.sweep.simulation.simulation import Adversity

    # As settings of the job: what can be set in it is checked there.
    given = {"search.trials": trials, "scale.lanes": lanes}
    checked = load_job(job, [*overrides, *(f"{key}={value}" for key, value in given.items() if value is not None)])
    adversity = Adversity(kill=kill, stragglers=stragglers, seed=seed)
    found = run(checked, _curves(checked, source, results), adversity, keep=keep, news=_news())
    if as_json:
        print_json(asdict(found))
    else:
        print_simulation(asdict(found), str(job), console())
    # Printed first in either form: a broken invariant is a fault of raysweep, and its words are needed to find it.
    if found.broken:
        sys.exit(1)


def _curves(job: Job, source: str | None, results: Path) -> Curves:
    from raysweep.cli.common import open_sweep
    from raysweep.sweep.simulation.curves import Modelled
    from raysweep.sweep.simulation.recorded import Recorded

    # Recorded refuses a sweep without a complete trial that has every kind of phase of this job.
    return Modelled() if source is None else Recorded(open_sweep(results, source), job)


def _news() -> Callable[[int, float], None]:
    """Return a function that prints the progress of a simulation to stderr, every few seconds."""
    told = time.monotonic()

    def tell(ended: int, seconds: float) -> None:
        nonlocal told
        # By the clock of this machine: thousands of virtual hours may pass within a second.
        if time.monotonic() - told > NEWS_S:
            told = time.monotonic()
            say(f"{ended:,} trials ended in {seconds / 3600:.1f} virtual hours", err=True)

    return tell
