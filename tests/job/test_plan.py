"""A phase's key changes with everything that determines its outcome, its parents' included, and with nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version as real_version
from typing import Any

import pydantic
import pytest

from raysweep.job import plan as plan_module
from raysweep.job.jobfile import check_job
from raysweep.job.paths import set_path
from raysweep.job.plan import Fingerprints, PhasePlan, TrialPlan, content_key, derived_seed, make_plan
from raysweep.job.spec import JobSpec

MARKS = Fingerprints(model="model", data="data")
JOB: dict[str, Any] = {
    "name": "demo",
    "model": {"name": "gpt2-nano"},
    "cycle": {
        "cycles": 2,
        "baseline": {"steps": 10, "lr": 1e-3},
        "prune": {"strategy": "entropy", "level": 0.3, "direction": "high"},
        "grow": {"strategy": "balanced", "ratio": 0.5},
        "learn": {"steps": 10, "lr": 1e-3},
    },
    "search": {"space": {"seed_free.path": {"choice": [1]}}, "trials": 4},
}
PHASES = ["baseline", "prune", "measure", "grow", "learn", "prune@2", "measure@2", "grow@2", "learn@2"]
NEVER = len(PHASES)  # the first phase that a setting changes: none

# Every setting of a job: (another value, the first phase whose outcome it determines).
SETTINGS: dict[str, tuple[Any, int]] = {
    "name": ("other", NEVER),
    "seed": (1, 0),
    "model.name": ("gpt2-micro", 0),
    "model.task": ("causal_lm", 0),
    "data.name": ("wikitext-2", 0),
    "data.train": ("train", 0),
    "data.evaluate": ("test", 0),
    "data.test": ("test", 0),
    "data.columns.text": ("review", 0),
    "data.columns.second": ("answer", 0),
    "data.columns.label": ("stars", 0),
    "data.header": (False, 0),
    "data.tokenizer": ("gpt2", 0),
    "data.masking": ("mask", 0),
    "data.seq_len": (64, 0),
    "data.eval_tokens": (1024, 0),
    "data.probe_windows": (4, 0),
    "data.max_tokens": (1000, 0),
    "training.batch_size": (8, 0),
    "training.accumulation": (2, 0),
    "training.weight_decay": (0.1, 0),
    "training.clip_norm": (2.0, 0),
    "training.warmup_fraction": (0.2, 0),
    "training.min_lr_fraction": (0.1, 0),
    "training.precision": ("fp32", 0),
    "training.compile": (True, 0),
    "training.evaluate_every": (5, 0),
    "cycle.cycles": (3, NEVER),
    "cycle.level_escalation": (0.1, 5),
    "cycle.regression.ratio": (1.2, NEVER),
    "cycle.regression.margin": (0.5, NEVER),
    "cycle.plateau.patience": (1, NEVER),
    "cycle.plateau.min_gain": (0.1, NEVER),
    "cycle.baseline.steps": (11, 0),
    "cycle.baseline.lr": (2e-3, 0),
    "cycle.prune.strategy": ("magnitude", 1),
    "cycle.prune.direction": ("low", 1),
    "cycle.prune.level": (0.4, 1),
    "cycle.prune.budget": ("per_layer", 1),
    "cycle.prune.normalize": ("layer", 1),
    "cycle.prune.rounds": (2, 1),
    "cycle.prune.unit": ("group", 1),
    "cycle.prune.min_heads_per_layer": (2, 1),
    "cycle.prune.grace_cycles": (2, 1),
    "cycle.prune.contribution": (True, 1),
    "cycle.measure.contribution": (True, 2),
    "cycle.grow.strategy": ("random", 3),
    "cycle.grow.ratio": (0.6, 3),
    "cycle.grow.init": ("small_random", 3),
    "cycle.learn.steps": (11, 4),
    "cycle.learn.lr": (2e-3, 4),
    "cycle.learn.new_head_lr_multiplier": (2.0, 4),
    "cycle.learn.multiplier_decay_steps": (5, 4),
    "cycle.learn.gate_warmup_steps": (5, 4),
    "cycle.learn.gate_start": (0.2, 4),
    "cycle.learn.seed_second_moments": (False, 4),
    "cycle.learn.trajectory_every": (5, 4),
    "search.space": ({"cycle.prune.level": {"uniform": [0.1, 0.2]}}, NEVER),
    "search.trials": (5, NEVER),
    "search.minimize": ("perplexity", NEVER),
    "search.constraints": (["perplexity <= 100"], NEVER),
    "search.stopping.name": ("asha", NEVER),
    "search.seeds": (2, NEVER),
    "search.top": (1, NEVER),
    "search.sampler.name": ("random", NEVER),
    "search.controls": (["dense"], NEVER),
    "scale.workers": (2, 0),
    "scale.lanes": (2, NEVER),
    "scale.cpus_per_worker": (2.0, 0),
    "scale.gpus_per_worker": (1.0, 0),
    "scale.isolation": ("process", NEVER),
    "scale.checkpoint_every_steps": (3, NEVER),
    "scale.lane_timeout": (60.0, NEVER),
    "scale.keep": ("best", NEVER),
    "scale.max_attempts": (1, NEVER),
    "budget.hours": (1.0, NEVER),
    "budget.flops": (1e12, NEVER),
    "budget.disk_gb": (1.0, NEVER),
}


INFER: dict[str, Any] = {"exit": "random", "steps": 4, "min_steps": 2, "mean_steps": 2.5}
CONTINUOUS: dict[str, Any] = {"every": 3, "first": 1, "events": 2, "remove": 2, "grow": 1}


def job_with(changes: Mapping[str, Any] | None = None) -> JobSpec:
    raw = json.loads(json.dumps(JOB))
    for path, value in (changes or {}).items():
        set_path(raw, path, value)
    if raw["cycle"]["prune"]["strategy"] != "entropy":
        del raw["cycle"]["prune"]["direction"]
    return JobSpec.model_validate(raw)


def plan_of(spec: JobSpec, trial: int = 1, values: Mapping[str, Any] | None = None, marks: Any = MARKS) -> TrialPlan:
    return make_plan(spec, values or {}, trial=trial, fingerprints=marks)


def keys(spec: JobSpec, **options: Any) -> list[str]:
    return [phase.key for phase in plan_of(spec, **options).phases]


def settings_of(section: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel)]
        yield from settings_of(inner[0], f"{prefix}{name}.") if inner else [f"{prefix}{name}"]


# Phases


def test_phases_follow_each_other_cycle_by_cycle() -> None:
    phases = plan_of(job_with()).phases
    assert [phase.label for phase in phases] == PHASES
    assert [phase.cycle for phase in phases] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [phase.steps for phase in phases] == [10, 0, 0, 0, 10, 0, 0, 0, 10]


@pytest.mark.parametrize(
    ("without", "labels"),
    [
        (["baseline"], ["baseline", "prune", "measure", "grow", "learn"]),
        (["grow"], ["baseline", "prune", "measure", "learn"]),
        (["learn"], ["baseline", "prune", "measure", "grow"]),
        (["prune", "grow"], ["baseline", "learn"]),
        (["prune", "grow", "learn"], ["baseline"]),
        (["baseline", "grow", "learn"], ["baseline", "prune", "measure"]),
    ],
)
def test_a_section_that_the_job_lacks_is_no_phase_but_the_model_is_always_measured_first(
    without: list[str], labels: list[str]
) -> None:
    cycle = {key: value for key, value in JOB["cycle"].items() if key not in without}
    plan = plan_of(JobSpec.model_validate({**JOB, "cycle": {**cycle, "cycles": 1}}))
    assert [phase.label for phase in plan.phases] == labels
    assert plan.phases[0].steps == (0 if "baseline" in without else 10)


def test_a_phase_holds_what_it_needs() -> None:
    baseline, prune, measure, grow, learn, *_ = (phase.params for phase in plan_of(job_with()).phases)
    assert (baseline["lr"], baseline["batch_size"], learn["new_head_lr_multiplier"]) == (1e-3, 16, 1.0)
    assert measure == {"contribution": False}
    assert (prune["strategy"], prune["direction"], prune["budget"]) == ("entropy", "high", "global")
    assert (grow["strategy"], grow["init"]) == ("balanced", "zero_output")


# Keys


def test_every_setting_of_a_job_is_classified_here() -> None:
    options = {"cycle.prune.direction"}
    continuous = {f"cycle.continuous.{name}" for name in CONTINUOUS}
    infer = {f"cycle.infer.{name}" for name in INFER}
    assert set(SETTINGS) | continuous | infer == set(settings_of(JobSpec)) | options | {"cycle.infer.mean_steps"}


@pytest.mark.parametrize("name", INFER)
def test_how_tokens_leave_changes_the_key_of_the_last_phase_alone(name: str) -> None:
    other = {"exit": "none", "steps": 3, "min_steps": 1, "mean_steps": 3.0}
    bare, before = keys(job_with()), keys(job_with({"cycle.infer": INFER}))
    after = keys(job_with({"cycle.infer": INFER | {name: other[name]}}))
    assert bare == before[:-1] == after[:-1] and before[-1] != after[-1]


def test_tokens_leave_after_events_and_in_every_control_but_a_small_model() -> None:
    changes = {"cycle.infer": INFER, "search.controls": ["dense", "from_scratch_small"]}
    plan = plan_of(job_with(changes))
    assert plan.phases[-1].kind == plan.controls["dense"][-1].kind == "infer"
    assert [phase.params["shaped_by"] for phase in plan.controls["from_scratch_small"]] == [
        plan.phases[3].key, plan.phases[7].key,
    ]  # fmt: skip
    events = plan_of(job_with({"cycle.cycles": 1, "cycle.continuous": CONTINUOUS, "cycle.infer": INFER})).phases
    assert [phase.kind for phase in events] == ["baseline", "learn", "infer"]
    assert [phase.steps for phase in events] == [10, 10, 0]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_schedule_of_events_changes_the_key_of_its_learn_phase(name: str) -> None:
    before = keys(job_with({"cycle.cycles": 1, "cycle.continuous": CONTINUOUS}))
    changed = {**CONTINUOUS, name: CONTINUOUS[name] + (-1 if name == "events" else 1)}
    after = keys(job_with({"cycle.cycles": 1, "cycle.continuous": changed}))
    assert (before[0], len(before)) == (after[0], 2) and before[1] != after[1]


def test_events_have_the_keys_of_the_discrete_phases_that_they_stand_for() -> None:
    discrete = plan_of(job_with()).phases
    once = {"cycle.cycles": 1, "cycle.continuous": {"every": 5, "events": 1}}
    (event,) = plan_of(job_with(once)).phases[1].params["events"]
    assert event["step"] == 0
    assert [phase["key"] for phase in event["phases"]] == [phase.key for phase in discrete[1:4]]
    assert [phase["params"] for phase in event["phases"]] == [phase.params for phase in discrete[1:4]]


def test_events_come_at_their_steps_and_know_their_counts() -> None:
    events = plan_of(
        job_with({"cycle.cycles": 1, "cycle.continuous": {"every": 4, "first": 1, "remove": 3, "grow": 2}})
    )
    planned = events.phases[1].params["events"]
    assert [event["step"] for event in planned] == [1, 5, 9]
    assert [[phase["cycle"] for phase in event["phases"]] for event in planned] == [[1] * 3, [2] * 3, [3] * 3]
    assert all([phase["params"].get("count") for phase in event["phases"]] == [3, None, 2] for event in planned)
    assert len({phase["key"] for event in planned for phase in event["phases"]}) == 9


def test_levels_escalate_from_cycle_to_cycle() -> None:
    plan = plan_of(job_with({"cycle.cycles": 3, "cycle.prune.level": 0.1, "cycle.level_escalation": 0.1}))
    assert [phase.params["level"] for phase in plan.phases if phase.kind == "prune"] == [0.1, 0.2, 0.3]


# Controls


def controls(arm: str, **changes: Any) -> tuple[PhasePlan, ...]:
    return plan_of(job_with({"search.controls": [arm], **changes})).controls[arm]


def test_dense_is_the_trial_without_its_structural_phases() -> None:
    own, dense = plan_of(job_with()).phases, controls("dense")
    assert [phase.label for phase in dense] == ["baseline", "learn", "learn@2"]
    assert dense[0] == own[0] and [phase.params for phase in dense[1:]] == [own[4].params, own[8].params]
    other = job_with({"cycle.prune.strategy": "taylor", "cycle.grow.ratio": 0.9, "search.controls": ["dense"]})
    assert plan_of(other).controls["dense"] == dense  # so trials share it


def test_no_regrow_shares_the_prune_with_the_trial() -> None:
    own, arm = plan_of(job_with()).phases, controls("no_regrow")
    assert [phase.label for phase in arm[:4]] == ["baseline", "prune", "measure", "learn"]
    assert arm[:3] == own[:3] and arm[3].params == own[4].params and arm[3].key != own[4].key


def test_random_random_keeps_the_budget_and_drops_the_options() -> None:
    own, arm = plan_of(job_with()).phases, controls("random_random")
    options = {"strategy": "entropy", "direction": "high"}
    assert arm[1].params == {k: v for k, v in own[1].params.items() if k not in options} | {"strategy": "random"}
    assert arm[3].params == own[3].params | {"strategy": "random"}


def test_rewind_differs_in_how_new_heads_begin() -> None:
    own, arm = plan_of(job_with()).phases, controls("rewind")
    assert arm[:3] == own[:3] and arm[3].params == own[3].params | {"init": "rewind"}


def test_a_small_model_trains_for_all_steps_of_the_trial_that_shapes_it() -> None:
    own, arm = plan_of(job_with()).phases, controls("from_scratch_small")
    assert [(phase.kind, phase.cycle, phase.steps) for phase in arm] == [("baseline", 1, 20), ("baseline", 2, 30)]
    assert [phase.params["shaped_by"] for phase in arm] == [own[3].key, own[7].key]
    bare = controls("from_scratch_small", **{"cycle.grow": None, "cycle.baseline": None})
    assert [phase.steps for phase in bare] == [10, 20] and bare[0].params["lr"] == own[4].params["lr"]


def test_a_plan_with_events_and_controls_survives_json() -> None:
    plan = plan_of(job_with({"cycle.cycles": 1, "cycle.continuous": CONTINUOUS, "search.controls": ["dense"]}))
    assert TrialPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("path", SETTINGS)
def test_a_setting_changes_the_key_of_the_phase_that_it_determines_and_of_all_later_ones(path: str) -> None:
    value, first = SETTINGS[path]
    before, after = keys(job_with()), keys(job_with({path: value}))
    assert after[:first] == before[:first]
    assert not set(after[first : len(before)]) & set(before)


@pytest.mark.parametrize(
    ("phases", "training", "first"),
    [
        (("prune", "grow"), {"batch_size": 8}, 0),
        (("prune", "grow"), {"accumulation": 2, "weight_decay": 0.5}, NEVER),
        (("prune", "grow", "learn"), {"accumulation": 2}, 4),
    ],
)
def test_training_settings_matter_where_there_is_training_and_the_batch_wherever_is_measured(
    phases: tuple[str, ...], training: dict[str, Any], first: int
) -> None:
    job = {**JOB, "cycle": {key: JOB["cycle"][key] for key in phases}}
    before, after = keys(JobSpec.model_validate(job)), keys(JobSpec.model_validate({**job, "training": training}))
    assert after[:first] == before[:first] and not set(after[first:]) & set(before)


def test_a_further_cycle_keeps_all_phases_before_it() -> None:
    two, three = keys(job_with()), keys(job_with({"cycle.cycles": 3}))
    assert len(three) == 13 and three[:9] == two


def test_equal_phases_of_two_cycles_have_keys_of_their_own() -> None:
    assert len(set(keys(job_with()))) == len(PHASES)


@pytest.mark.parametrize("marks", [Fingerprints(model="other", data="data"), Fingerprints(model="model", data="other")])
def test_another_model_or_corpus_under_the_same_name_changes_every_key(marks: Fingerprints) -> None:
    assert not set(keys(job_with(), marks=marks)) & set(keys(job_with()))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_another_version_of_what_computes_changes_every_key(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    before = keys(job_with())
    monkeypatch.setattr(plan_module, "versions", plan_module.versions.__wrapped__)  # look them up anew each time
    monkeypatch.setattr(plan_module, "version", lambda name: "0.0.7" if name == package else real_version(name))
    assert not set(keys(job_with())) & set(before)


def test_a_local_build_of_the_same_torch_keeps_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = real_version("torch").partition("+")[0]
    found = []
    monkeypatch.setattr(plan_module, "versions", plan_module.versions.__wrapped__)
    for build in (plain, f"{plain}+cu128"):
        monkeypatch.setattr(plan_module, "version", lambda name, b=build: b if name == "torch" else real_version(name))
        found.append(keys(job_with()))
    assert found[0] == found[1]


def test_which_trial_it_is_and_how_its_values_were_found_change_no_key() -> None:
    assert keys(job_with(), trial=7, values={"cycle.prune.level": 0.3}) == keys(job_with())


def test_a_value_from_a_space_and_the_same_value_in_the_job_give_equal_keys() -> None:
    job = check_job({**JOB, "search": None}, "job.yaml")
    values = {"cycle.prune.strategy": "taylor", "cycle.prune.level": 0.4, "cycle.learn.lr": 2e-3}
    written = {**JOB["cycle"], "prune": {"level": 0.4, "strategy": "taylor"}, "learn": {"lr": 0.002, "steps": 10}}
    assert keys(job.with_values(values)) == keys(JobSpec.model_validate({**JOB, "cycle": written}))


def test_the_order_in_which_a_job_is_written_changes_no_key() -> None:
    def backwards(value: Any) -> Any:
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert keys(JobSpec.model_validate(backwards(JOB))) == keys(job_with())


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_finds_the_same_keys_and_seeds(seed: str) -> None:
    code = f"""
import json
from raysweep.job.plan import *
from raysweep.job.spec import JobSpec
spec = JobSpec.model_validate(json.loads({json.dumps(json.dumps(JOB))}))
plan = make_plan(spec, {{}}, trial=1, fingerprints=Fingerprints(model="model", data="data"))
print(*[phase.key for phase in plan.phases], derived_seed(plan.phases[0].key, "init", 3))
"""
    environment = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = keys(job_with())
    assert done.stdout.split() == [*here, str(derived_seed(here[0], "init", 3))]


def test_a_content_key_depends_on_content_alone() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    found = [content_key(content) for content in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1], [1, 2], [2, 1], None)]
    assert len(set(found)) == len(found) and all(len(key) == 20 for key in found)


def test_a_seed_depends_on_the_key_and_on_what_it_is_for() -> None:
    found = [derived_seed(*purpose) for purpose in (("k",), ("k", "prune"), ("k", "grow"), ("m", "prune"), ("k", 1, 2))]
    assert len(set(found)) == len(found) and all(0 <= seed < 2**63 for seed in found)
    assert derived_seed("k", "init", 3) == derived_seed("k", "init", "3")


# The plan


def test_a_plan_survives_its_way_to_a_worker() -> None:
    spec = job_with({"data.tokenizer": "gpt2", "search.minimize": "perplexity", "scale.checkpoint_every_steps": 7})
    plan = plan_of(spec, trial=3, values={"cycle.prune.level": 0.3, "data.tokenizer": None, "cycle.learn.lr": 1e-3})
    read = TrialPlan.from_json(plan.to_json())
    assert read == plan and read.phases[1] == plan.phases[1] and type(read.phases) is tuple
    assert (read.trial, read.seed, read.checkpoint_every_steps) == (3, 0, 7)
    assert json.loads(plan.to_json())["values"] == {
        "cycle.prune.level": 0.3,
        "data.tokenizer": None,
        "cycle.learn.lr": 1e-3,
    }
