"""Jobs and plans that tests share; nothing here imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from raysweep.job.jobfile import Job, check_job
from raysweep.job.plan import Fingerprints, TrialPlan, make_plan

REPOSITORY = Path(__file__).resolve().parents[2]


def quick_job(**changes: Any) -> dict[str, Any]:
    """Return a job that runs in about a second; dotted changes as `cycle__learn__lr=1e-3`; None removes."""
    job: dict[str, Any] = {
        "name": "quick",
        "model": {"name": "gpt2-pico"},
        "data": {"seq_len": 16, "eval_tokens": 128, "probe_windows": 2},
        "training": {"batch_size": 4},
        "cycle": {
            "cycles": 2,
            "baseline": {"steps": 4, "lr": 3e-3},
            "prune": {"strategy": "taylor", "level": 0.3},
            "grow": {"strategy": "gradient_sensitivity", "ratio": 0.4},
            "learn": {"steps": 4, "lr": 3e-3, "new_head_lr_multiplier": 3.0, "gate_warmup_steps": 2},
        },
    }
    for path, value in changes.items():
        *sections, last = path.split("__")
        body = job
        for section in sections:
            body = body.setdefault(section, {})
        if value is None:
            del body[last]
        else:
            body[last] = value
    return job


def checked_job(raw: Mapping[str, Any], source: str = "job.yaml") -> Job:
    """Return the checked job of a mapping; equal mappings are checked once, since a space is tried at many points."""
    return _checked(json.dumps(raw), source)


@cache
def _checked(raw: str, source: str) -> Job:
    return check_job(json.loads(raw), source)


def quick_plan(trial: int = 1, **changes: Any) -> TrialPlan:
    spec = checked_job(quick_job(**changes), "quick.yaml").spec
    return make_plan(spec, {}, trial=trial, fingerprints=Fingerprints(model="model", data="data"))


def nano_plan(trial: int = 1, **changes: Any) -> TrialPlan:
    """Return the plan of a model of four layers, for tests that count heads layer by layer; `quick_plan` has two."""
    return quick_plan(trial, model__name="gpt2-nano", **changes)
