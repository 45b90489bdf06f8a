"""Warn of a stopping rule whose first rung lies before the first evaluation of a trial, where it can judge nothing."""

from __future__ import annotations

from raysweep.job import registry
from raysweep.job.space import Space
from raysweep.job.spec import JobSpec

ROUNDING = 1e-9


def rung_warnings(spec: JobSpec, space: Space | None) -> list[str]:
    """Return a warning where evaluations are too far apart for the first rung of the job's stopping rule."""
    every = _least("training.evaluate_every", spec.training.evaluate_every, space)
    learn, baseline = spec.cycle.learn, spec.cycle.baseline
    if spec.search is None or every is None or (learn or baseline) is None:
        return []
    stopping = spec.search.stopping
    # A rule from outside raysweep is not asked: its code runs in a sweep alone.
    if "." in stopping.name:
        return []
    rung = registry.build("schedulers", stopping.name, stopping.options).first_rung()
    # As contracts.Report: what counts is the compute of all learn phases, or of the baseline where there are none.
    if learn is not None:
        phase, cycles = (
            _least("cycle.learn.steps", learn.steps, space),
            _least("cycle.cycles", spec.cycle.cycles, space),
        )
    else:
        phase, cycles = _least("cycle.baseline.steps", baseline.steps if baseline else None, space), 1
    if rung is None or not phase or not cycles:
        return []
    first = min(every, phase) / (phase * cycles)
    if first <= rung * (1 + ROUNDING):
        return []
    most = int(rung * phase * cycles + ROUNDING)
    way = f"set it to {most} or less" if most else "train for more steps, or name a later first rung"
    return [
        f"training.evaluate_every = {every}: the first evaluation lies at {first:.1%} of a trial's compute, behind the "
        f"first rung of {stopping.name} at {rung:.1%}, where no trial can be judged; {way}."
    ]


def _least(path: str, setting: int | None, space: Space | None) -> int | None:
    """Return the smallest value that a setting can have."""
    searched = [one for one in (space.parameters if space else ()) if one.path == path]
    corners = [value for one in searched for value in one.corners() if isinstance(value, int)]
    return min(corners, default=setting)
