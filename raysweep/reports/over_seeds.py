"""Summarise points over their seeds, as JSON: means with intervals, paired differences, whether a win is confirmed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raysweep.job.search import SearchSpec
from raysweep.records import points
from raysweep.records.objectives import feasible
from raysweep.records.points import Point
from raysweep.records.schema import TrialRecord
from raysweep.records.statistics import mean_of, paired

Losses = Mapping[int, Mapping[str, float]]
"""Final loss by trial, then by arm; `main` is the trial itself."""


def over_seeds(tried: Sequence[Point], best: int | None, losses: Losses) -> list[dict[str, Any]]:
    """Return every point that ran on several seeds, compared with the best point and with its control arms."""
    reference = next((point for point in tried if point.trial == best), None)
    return [_point(point, reference, losses) for point in tried if len(point.by_seed) > 1]


def winner(tried: Sequence[Point], search: SearchSpec) -> dict[str, Any] | None:
    """Return the point with the best mean, and whether fresh seeds confirm it; None where no point is complete yet."""
    order = points.by_mean(tried)
    if not order:
        return None
    best, *others = order
    # Winners are confirmed for a single objective only (points.is_confirmed).
    [(name, searched)] = best.searched.objectives.items()
    fresh = mean_of(_values(best.fresh.values(), name)) if best.fresh else None
    second = others[0] if others else None
    return {
        "trial": best.trial,
        "objective": name,
        "points_tried": len(tried),
        "searched": searched,
        "mean": best.objectives[name],
        "fresh": asdict(fresh) if fresh else None,
        "fresh_seeds_planned": search.seeds,
        "runner_up": {"trial": second.trial, "mean": second.objectives[name]} if second else None,
        # Compared is the mean on fresh seeds alone: the seeds that chose the winner favour it. All of them must have
        # completed, else the failed ones would be left out of the mean in its favour.
        "confirmed": fresh is not None
        and fresh.count == search.seeds
        and (second is None or fresh.mean <= second.objectives[name]),
    }


def _point(point: Point, reference: Point | None, losses: Losses) -> dict[str, Any]:
    names = list(point.searched.objectives)
    # The best point against itself would be a difference of exactly zero.
    compared = reference if reference is not None and reference.trial != point.trial else None
    # Paired by seed: both sides of a pair had the same draws, which cancel in their difference.
    own = {seed: losses[record.trial] for seed, record in point.by_seed.items()}
    arms = dict.fromkeys(arm for ends in own.values() for arm in ends if arm != "main")
    return {
        "trial": point.trial,
        "trials": sorted(record.trial for record in point.by_seed.values()),
        "seeds": sorted(point.by_seed),
        "objectives": {name: asdict(mean_of(_values(point.by_seed.values(), name))) for name in names},
        "feasible": feasible(point.violations),
        "against_best": {name: _against(point, compared, name) for name in names} if compared else None,
        "against_controls": {
            arm: _difference(
                {seed: ends["main"] for seed, ends in own.items()},
                # A control that failed on a seed leaves that pair out, not the whole comparison.
                {seed: ends[arm] for seed, ends in own.items() if arm in ends},
            )
            for arm in arms
        },
    }


def _values(records: Iterable[TrialRecord], name: str) -> list[float]:
    return [record.objectives[name] for record in records]


def _against(point: Point, other: Point, name: str) -> dict[str, Any] | None:
    one, two = ({seed: r.objectives[name] for seed, r in p.by_seed.items()} for p in (point, other))
    return _difference(one, two)


def _difference(one: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    found = paired(one, other)
    return asdict(found) if found else None
