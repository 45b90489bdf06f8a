"""Build the stopping rule that a job names."""

from __future__ import annotations

from raysweep.contracts import StoppingRule
from raysweep.job import registry
from raysweep.job.search import SearchSpec


def rule_of(search: SearchSpec | None) -> StoppingRule:
    """Return the rule that a search asks for; none stops the single trial of a job without a search."""
    search = search or SearchSpec()
    rule: StoppingRule = registry.build("schedulers", search.stopping.name, search.stopping.options).build(
        search.trials
    )
    return rule
