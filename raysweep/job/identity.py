"""Tell whether two jobs are the same but for limits: by a hash of all that can change what a trial is."""

from __future__ import annotations

from raysweep.job.plan import content_key
from raysweep.job.spec import JobSpec

CHANGEABLE = (
    "budget.hours", "budget.flops", "budget.disk_gb", "search.trials", "scale.lanes", "scale.max_attempts",
    "scale.checkpoint_every_steps", "scale.lane_timeout", "scale.keep",
)  # fmt: skip
"""Settings that decide how much is run and where, and cannot change a result."""


def job_hash(spec: JobSpec) -> str:
    """Return a hash of a job's settings without CHANGEABLE ones; it stands in the plan of every trial."""
    # Without defaults: a setting that a later raysweep adds leaves the hash of older jobs as it is.
    content = spec.model_dump(mode="json", exclude_defaults=True)
    for path in CHANGEABLE:
        section, _, name = path.partition(".")
        content.get(section, {}).pop(name, None)
    # A section of limits alone is one without a setting.
    return content_key({name: value for name, value in content.items() if value != {}})
