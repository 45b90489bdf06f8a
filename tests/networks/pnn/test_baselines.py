"""Every baseline and gate is a job of the same trainer: it learns, and is counted as what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.helpers import run_all
from support.jobs import quick_plan

from raysweep.job.spec import ModelSpec
from raysweep.science.pnn.efficiency import cost

NETWORKS: list[dict[str, Any]] = [
    {"trunk": "layers", "num_steps": 12, "intermediate_size": 512},
    {"trunk": "layers", "num_steps": 4},
    {"trunk": "layers", "num_steps": 1},
    {"trunk": "shared_layer"},
    {"trunk": "hierarchical", "num_steps": 2, "block_widths": [60, 90]},
    {"gate": "query_key"},
    {"gate": "none"},
    {"gate": "constant", "gate_value": 0.3},
    {"gate": "scalar", "init": "zero"},
]


SELDOM = NETWORKS[:1] + NETWORKS[2:4] + NETWORKS[5:7]


@pytest.mark.parametrize(
    "options",
    [pytest.param(options, marks=pytest.mark.slow) if options in SELDOM else options for options in NETWORKS],
    ids=str,
)
def test_it_learns_in_one_phase_and_its_record_holds_what_it_cost(options: dict[str, Any], tmp_path: Path) -> None:
    plan = quick_plan(
        model={"name": "pnn-nano", **options}, cycle={"baseline": {"steps": 20, "lr": 3e-3}}, data__eval_tokens=256
    )
    (record,) = run_all(plan, tmp_path)
    assert record.phase == "baseline" and record.loss < record.curve[0]["loss"] - 0.1
    counted = cost(ModelSpec(name="pnn-nano", **options), seq_len=16)
    assert record.params == counted.parameters
    assert record.flops_per_token == pytest.approx(counted.forward_flops)
    assert record.training_flops == pytest.approx(counted.training_flops * 20 * 4 * 16)
