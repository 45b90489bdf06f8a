"""Foresee the points of a search whose sampler learns nothing from results: what will be run is known beforehand."""

from __future__ import annotations

from raysweep.job import registry
from raysweep.job.jobfile import Job
from raysweep.job.space import Values
from raysweep.sweep.study import Study

MOST = 1000
"""Points that are foreseen at most: each takes milliseconds to draw."""


def foreseen_points(job: Job) -> list[Values] | None:
    """Return the points that the search of a job will propose, in order; None if they depend on results.

    A grid may end before the planned number of trials. Points of more than `MOST` trials are not worked out.

    Raises:
        RunError: the job's rules allow hardly any point.
    """
    search = job.spec.search
    if search is None or job.space is None or search.trials > MOST:
        return None
    if not registry.load("samplers", search.sampler.name).blind:
        return None
    # The very study that a sweep would have, without a result.
    study, points = Study(job, None), list[Values]()
    for trial in range(1, search.trials + 1):
        values = study.ask(trial)
        if values is None:
            break
        points.append(values)
    return points
