"""Simulate a job, and report how its trials ended, what that took, and whether the invariants of sweeps held."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raysweep.errors import UsageError
from raysweep.job.jobfile import Job
from raysweep.records import environment
from raysweep.records.folder import SweepFolder
from raysweep.sweep.invariants import examine
from raysweep.sweep.simulation.curves import Curves
from raysweep.sweep.simulation.simulation import NOWHERE, Adversity, Simulation

WITHOUT_GROUND = ("the best trial's checkpoint is on disk", "no process is left over")
"""Invariants that do not apply to a simulation: it has neither weights nor processes."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of a simulation."""

    trials: dict[str, int]
    """Number of trials by status."""
    phases: dict[str, int]
    """Number of phase records: `run`, and `reused` from another trial."""
    steps: int
    """Executed steps, lost ones included."""
    unshared_steps: int
    """Steps of the same phases if each trial ran all of its own and no worker died."""
    wasted_steps: int
    """Executed steps that were lost with a worker."""
    kills: int
    virtual_hours: float
    lanes: int
    lane_use: float
    """Share of the time in which lanes were at work."""
    invariants: dict[str, list[str]]
    """Invariant -> what breaks it."""
    seconds: float
    """Real time of the simulation itself."""

    @property
    def broken(self) -> list[str]:
        return [fault for found in self.invariants.values() for fault in found]


def simulate(
    job: Job,
    curves: Curves,
    adversity: Adversity,
    *,
    keep: Path | None = None,
    news: Callable[[int, float], None] = lambda ended, seconds: None,
) -> Findings:
    """Run a job in virtual time and check the invariants on what it leaves.

    Args:
        keep: a new folder for the simulated sweep, marked as simulated; None: it is removed in the end.
        news: called whenever a trial ends, with the number of ended trials and the virtual time in seconds.

    Raises:
        UsageError: the folder to keep is taken.
    """
    # The simulated archive is checked like that of a real sweep, see `raysweep status --check`.
    started = time.perf_counter()
    with _folder(job, keep) as folder:
        simulation = Simulation(folder=folder, job=job, curves=curves, adversity=adversity, news=news)
        standstill = simulation.run()
        examined = examine(folder)["invariants"]
        apply = {name: found for name, found in examined.items() if name not in WITHOUT_GROUND}
        invariants = {"the sweep comes to its end": standstill, **_counted(simulation), **apply}
        return _findings(simulation, invariants, started)


@contextmanager
def _folder(job: Job, keep: Path | None) -> Iterator[SweepFolder]:
    # Marked in its name and in env.json: simulated records must never be taken for measured ones. Not durable: to wait
    # for the disk after each line would take most of the simulation's time.
    about = environment.describe() | {"fingerprints": NOWHERE.__dict__, "sharing": True, "simulated": True}
    name = f"SIMULATED-{job.spec.name}"
    if keep is not None:
        if (keep / name).exists():
            raise UsageError(f"--keep {keep}: {name!r} is there already; remove it, or name another folder.")
        yield SweepFolder(SweepFolder.create(keep, job, name, about).path, durable=False)
        return
    with tempfile.TemporaryDirectory(prefix="raysweep-") as scratch:
        yield SweepFolder(SweepFolder.create(Path(scratch), job, name, about).path, durable=False)


def _counted(simulation: Simulation) -> dict[str, list[str]]:
    """Return what breaks two invariants that only the workers' counts can show, not the archive."""
    counts, interval = simulation.counts, simulation.job.spec.scale.checkpoint_every_steps
    twice = [f"phase {key} was run {times} times" for key, times in counts.runs.items() if times > 1]
    # What a kill can cost at most is the steps since the last checkpoint.
    limit = simulation.kills * interval
    waste = [f"{counts.wasted} steps by {simulation.kills} kills"] if counts.wasted > limit else []
    return {"no phase is run twice": twice, "wasted steps <= kills x checkpoint interval": waste}


def _findings(simulation: Simulation, invariants: dict[str, list[str]], started: float) -> Findings:
    folder, counts = simulation.folder, simulation.counts
    records = folder.phases(stop="curve")
    run = sum(record.steps for record in records if not record.reused)
    # Steps of trials that ended within a phase, of which there is no record.
    unfinished = counts.steps - counts.wasted - run
    return Findings(
        trials=dict(Counter(record.status for record in folder.trials().values())),
        phases=dict(Counter("reused" if record.reused else "run" for record in records)),
        steps=counts.steps,
        unshared_steps=sum(record.steps for record in records) + unfinished,
        wasted_steps=counts.wasted,
        kills=simulation.kills,
        virtual_hours=simulation.now / 3600,
        lanes=simulation.num_lanes,
        lane_use=counts.busy_s / (simulation.num_lanes * simulation.now),
        invariants=invariants,
        seconds=time.perf_counter() - started,
    )
