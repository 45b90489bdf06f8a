"""Which trials of a large sweep a table shows: the best, and some of those that still run or went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ROWS = 100
"""Trials that a table shows at most; thousands are nothing to read."""
SHARE = 4
"""A quarter of the rows at most goes to open trials, and a quarter to those with an error."""


def narrowed(state: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
    """Return a sweep's state with so many of its trials at most, in their order; counts stay those of all."""
    trials = state["trials"]
    if len(trials) <= rows:
        return state
    open_trials = [trial["trial"] for trial in trials if trial["status"] == "UNFINISHED"]
    failed = [trial["trial"] for trial in trials if trial["error"]]
    wanted = [*state["front"][: rows // 2], *open_trials[-(rows // SHARE) :], *failed[: rows // SHARE]]
    wanted += [trial["trial"] for trial in sorted(trials, key=_merit)]
    kept = set(list(dict.fromkeys(wanted))[:rows])
    return {**state, "trials": [trial for trial in trials if trial["trial"] in kept]}


def _merit(trial: Mapping[str, Any]) -> tuple[bool, float]:
    objective = trial["objective"]
    return trial["status"] != "COMPLETE", math.inf if objective is None else objective
