"""What the rehearsal refuses, no scores make possible; and what heads there are, it counts as a trial does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from raysweep.errors import TrialError
from raysweep.job.plan import PhasePlan
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.trial.forecast.rehearsal import rehearse
from raysweep.trial.quotas import heads_to_remove, number_to_grow, removal_rounds

SHAPE = (3, 4)


def cycles_of(levels: Sequence[float], ratio: float, **rules: Any) -> list[PhasePlan]:
    prune = {"budget": "global", "rounds": 1, "unit": "head", "min_heads_per_layer": 1, "grace_cycles": 1, **rules}
    phases = []
    for cycle, level in enumerate(levels, 1):
        phases.append(PhasePlan(kind="prune", cycle=cycle, params={**prune, "level": level}, key=""))
        phases.append(PhasePlan(kind="grow", cycle=cycle, params={"ratio": ratio}, key=""))
    return phases


def carried_out(phases: Sequence[PhasePlan], groups: int, generator: np.random.Generator) -> bool:
    """Whether a trial whose strategies choose at random comes to its end."""
    head_map, removed = HeadMap.full(*SHAPE), 0
    for phase in phases:
        try:
            if phase.kind == "prune":
                before = head_map
                for count in removal_rounds(phase.params, SHAPE, groups):
                    slots = heads_to_remove(
                        generator.random(SHAPE), head_map, count, phase.params, cycle=phase.cycle, groups=groups,
                        since=before,
                    )  # fmt: skip
                    head_map = head_map.without(slots)
                removed = before.active - head_map.active
            else:
                free = np.argwhere(~head_map.present)
                count = number_to_grow(phase.params, head_map, removed)
                chosen = generator.permutation(free)[:count]
                head_map = head_map.with_grown([(int(layer), int(head)) for layer, head in chosen], phase.cycle)
        except TrialError:
            return False
    return True


def random_job(generator: np.random.Generator) -> tuple[list[PhasePlan], int]:
    levels = (generator.integers(1, 9, size=3) / 12).tolist()
    unit = str(generator.choice(["head", "head", "group", "equal"]))
    rules = {
        "budget": str(generator.choice(["global", "per_layer"])), "rounds": int(generator.integers(1, 3)),
        "min_heads_per_layer": int(generator.integers(1, 3)), "grace_cycles": int(generator.integers(0, 3)),
        "unit": unit,
    }  # fmt: skip
    return cycles_of(levels, float(generator.choice([0.0, 0.5, 1.0])), **rules), int(generator.choice([2, 4]))


@pytest.mark.slow
def test_what_is_refused_no_scores_make_possible() -> None:
    generator, refused, possible = np.random.default_rng(0), 0, 0
    for _ in range(150):
        phases, groups = random_job(generator)
        done = [carried_out(phases, groups, generator) for _ in range(30)]
        if rehearse(phases, SHAPE, groups) is None:
            possible += any(done)
        else:
            refused += 1
            assert not any(done), (phases, groups)
    assert refused > 20 and possible > 20


def test_without_growth_nothing_depends_on_scores() -> None:
    """Then a global budget that passes can always be met."""
    generator = np.random.default_rng(1)
    verdicts = set()
    for _ in range(100):
        levels = (generator.integers(1, 6, size=3) / 12).tolist()
        phases = cycles_of(levels, 0.0, min_heads_per_layer=int(generator.integers(1, 4)))
        verdict = rehearse(phases, SHAPE, 4) is None
        assert carried_out(phases, 4, generator) == verdict
        verdicts.add(verdict)
    assert verdicts == {True, False}


@pytest.mark.parametrize(
    ("levels", "rules", "cycle", "key"),
    [
        ([0.3, 0.3, 0.3], {}, 3, "cycle.prune.level"),
        ([0.5], {"min_heads_per_layer": 3}, 1, "cycle.prune.min_heads_per_layer"),
        ([0.9], {"min_heads_per_layer": 3}, 1, "cycle.prune.level"),  # too much with any floor
        ([0.25], {"unit": "group"}, 1, "cycle.prune.level"),  # 3 heads, in groups of 2
    ],
)
def test_the_first_phase_that_cannot_be_is_named_with_its_setting(
    levels: list[float], rules: dict[str, Any], cycle: int, key: str
) -> None:
    found = rehearse(cycles_of(levels, 0.0, **rules), SHAPE, 2 if rules.get("unit") else 4)
    assert found is not None
    assert (found[0].kind, found[0].cycle, found[1].key) == ("prune", cycle, key)
