"""A job is checked whole before anything starts: every fault at once, each with file, key, value and the way out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.jobs import REPOSITORY

from raysweep.errors import Fault, SpecError, UsageError
from raysweep.job import registry
from raysweep.job.jobfile import Job, apply_values, check_job, load_job
from raysweep.job.paths import get_path, set_path
from raysweep.job.spacefile import load_space
from raysweep.job.yamlfile import dump_mapping, load_mapping, parse_scalar

JOBS = sorted((REPOSITORY / "jobs").glob("*.yaml"))
SPACES = sorted((REPOSITORY / "search_spaces").glob("*.yaml"))
BASE: dict[str, Any] = {
    "name": "demo",
    "model": {"name": "gpt2-nano"},
    "cycle": {
        "baseline": {"steps": 10, "lr": 1e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "balanced", "ratio": 0.5},
        "learn": {"steps": 10, "lr": 1e-3},
    },
}
LEVEL = {"cycle.prune.level": {"uniform": [0.1, 0.5]}}


def job_with(changes: Mapping[str, Any], space: Mapping[str, Any] | str | None = None) -> dict[str, Any]:
    """Return the base job with a value set at each dotted path and, if given, a search over a space."""
    raw = copy.deepcopy(BASE)
    if space is not None:
        raw["search"] = {"space": space, "trials": 1}
    for path, value in changes.items():
        set_path(raw, path, value)
    return raw


def faults_of(raw: Mapping[str, Any], source: str = "job.yaml") -> list[Fault]:
    with pytest.raises(SpecError) as refused:
        check_job(raw, source)
    return refused.value.faults


def space_faults(space: Mapping[str, Any], **changes: Any) -> list[tuple[str, Any, str]]:
    """Return (key, value, message) of each fault of a space; all must name the space as their place."""
    faults = faults_of(job_with({path.replace("__", "."): value for path, value in changes.items()}, space))
    assert {fault.file for fault in faults} == {"job.yaml (search.space)"}
    return [(fault.key, fault.value, fault.message) for fault in faults]


# One fault at a time


SENSITIVITY = {"cycle.grow.strategy": "gradient_sensitivity"}


@pytest.mark.parametrize(
    ("changes", "key", "value", "said"),
    [
        ({"cycle.prune.level": 1.5}, "cycle.prune.level", 1.5, "less than 1"),
        ({"cycle.prune.level": 0}, "cycle.prune.level", 0, "greater than 0"),
        ({"cycle.grow.ratio": 1.2}, "cycle.grow.ratio", 1.2, "less than or equal to 1"),
        ({"cycle.grow.ratio": -0.1}, "cycle.grow.ratio", -0.1, "greater than or equal to 0"),
        ({"cycle.baseline.steps": 0}, "cycle.baseline.steps", 0, "greater than 0"),
        ({"cycle.learn.steps": -3}, "cycle.learn.steps", -3, "greater than 0"),
        ({"cycle.learn.steps": 2.5}, "cycle.learn.steps", 2.5, "whole number"),
        ({"cycle.learn.lr": "fast"}, "cycle.learn.lr", "fast", "number"),
        ({"cycle.learn.lr": float("inf")}, "cycle.learn.lr", float("inf"), "finite"),
        ({"cycle.prune.budget": "layer"}, "cycle.prune.budget", "layer", "'global' or 'per_layer'"),
        ({"seed": -1}, "seed", -1, "greater than or equal to 0"),
        ({"name": "../escape"}, "name", "../escape", "pattern"),
        ({"cycle.prune.strategy": "taylro"}, "cycle.prune.strategy", "taylro", "Did you mean 'taylor'?"),
        ({"cycle.prune.strategy": 3}, "cycle.prune.strategy", 3, "must be text"),
        ({"cycle.grow.strategy": "ballanced"}, "cycle.grow.strategy", "ballanced", "Did you mean 'balanced'?"),
        ({"cycle.grow.init": "zero_outptu"}, "cycle.grow.init", "zero_outptu", "Did you mean 'zero_output'?"),
        ({"cycle.grow.form": "gate", **SENSITIVITY}, "cycle.grow.form", "gate",
         "does not fit init 'zero_output', which takes 'output', 'gradmax'; it fits 'rewind', 'small_random'"),
        ({"cycle.grow.form": "output", "cycle.grow.init": "split", **SENSITIVITY}, "cycle.grow.form", "output",
         "does not fit init 'split', which takes 'gate'; it fits 'zero_output'."),
        ({"cycle.grow.form": "gat", **SENSITIVITY}, "cycle.grow.form", "gat", "'gate', 'output' or 'gradmax'"),
        ({"cycle.grow.noise": 0.1}, "cycle.grow.noise", 0.1, "unknown key: no 'noise'"),
        ({"cycle.grow.noise": 0, "cycle.grow.init": "split"}, "cycle.grow.noise", 0, "greater than 0"),
        ({"cycle.grow.nois": 1, "cycle.grow.init": "split"}, "cycle.grow.nois", 1, "Did you mean 'noise'?"),
        ({"cycle.prune": None}, "cycle.grow", None, "without pruning; add cycle.prune or remove cycle.grow"),
        ({"cycle.prune.strategy": "entropy"}, "cycle.prune.direction", None, "'high' or 'low'"),
        ({"cycle.prune.power": 2}, "cycle.prune.power", 2, "unknown key: no 'power'"),
        ({"cycle.prune.levle": 2}, "cycle.prune.levle", 2, "Did you mean 'level'?"),
        ({"cycle.prune.min_heads": 2}, "cycle.prune.min_heads", 2, "Did you mean 'min_heads_per_layer'?"),
        ({"cycle.learn.gate_warmup_steps": 11}, "cycle.learn.gate_warmup_steps", 11, "cycle.learn.steps = 10"),
        ({"cycle.learn.multiplier_decay_steps": 11}, "cycle.learn.multiplier_decay_steps", 11, "at most"),
        ({"cycle.cycles": 8, "cycle.level_escalation": 0.1}, "cycle.level_escalation", 0.1, "cycle 8"),
        ({"cycle.cycles": 2, "cycle.plateau": {}}, "cycle.plateau.patience", 2, "could never fire"),
        ({"cycle.learn": None, "cycle.regression": {}}, "cycle.regression", None, "add cycle.learn"),
        ({"cycle.cycles": 2, "cycle.continuous": {"every": 2}}, "cycle.cycles", 2, "events take the place"),
        ({"cycle.continuous": {"every": 5, "events": 3}}, "cycle.continuous.events", 3, "before step 10 of 10"),
        ({"cycle.continuous": {"every": 5, "first": 99}}, "cycle.continuous.first", 99, "must be below"),
        ({"cycle.continuous": {"every": 5}, "cycle.learn": None}, "cycle.continuous", None, "add cycle.learn"),
        ({"cycle.continuous": {"every": 5, "grow": 1}, "cycle.grow": None}, "cycle.continuous.grow", 1, "to say how"),
        ({"cycle.grow": None, "search": {"controls": ["rewind"]}}, "search.controls", "rewind", "the trial itself"),
        ({"search": {"controls": ["sparse"]}}, "search.controls.0", "sparse", "'dense'"),
        ({"search": {"trials": 2}}, "search.trials", 2, "all would be equal"),
        ({"data.name": "c4"}, "data.max_tokens", None, "set the number of training tokens"),
        ({"data.max_tokens": 1000}, "data.max_tokens", 1000, "only for streamed corpora (c4)"),
        ({"data.seq_len": 64, "data.eval_tokens": 63}, "data.eval_tokens", 63, "data.seq_len = 64"),
        ({"data.eval_tokens": 100}, "data.eval_tokens", 100, "data.seq_len = 128"),
        ({"cycle.lern": {}}, "cycle.lern", None, "Did you mean 'learn'?"),
        ({"modle": {}}, "modle", None, "Did you mean 'model'?"),
        ({"cycle.baseline.step": 3}, "cycle.baseline.step", 3, "Did you mean 'steps'?"),
        ({"training.batchsize": 3}, "training.batchsize", 3, "Did you mean 'batch_size'?"),
        ({"scale": {"worker": 2}}, "scale.worker", 2, "Did you mean 'workers'?"),
        ({"model": "gpt2"}, "model", "gpt2", "must be a mapping of keys to values"),
        ({"model": {}}, "model.name", None, "required, but missing"),
        ({"cycle.learn": {"steps": 3}}, "cycle.learn.lr", None, "required, but missing"),
        ({"cycle": {"cycles": 2}}, "cycle", None, "nothing to do: add at least one of baseline, prune, learn"),
    ],
)  # fmt: skip
def test_a_fault_is_reported_alone_with_its_key_value_and_way_out(
    changes: dict[str, Any], key: str, value: Any, said: str
) -> None:
    [fault] = faults_of(job_with(changes))
    assert (fault.file, fault.key, fault.value) == ("job.yaml", key, value)
    assert said in fault.message


@pytest.mark.parametrize(
    ("changes", "key", "value", "said"),
    [
        ({"search.trials": 0}, "search.trials", 0, "greater than or equal to 1"),
        ({"search.minimize": "accuracy"}, "search.minimize", "accuracy", "'loss', 'perplexity'"),
        ({"search.minimize": ["loss", "lost"]}, "search.minimize.1", "lost", "'loss', 'perplexity'"),
        ({"search.minimize": []}, "search.minimize", [], "at least one objective"),
        ({"search.minimize": ["loss", "loss"]}, "search.minimize", ["loss", "loss"], "none twice"),
        ({"search.top": 2}, "search.top", 2, "add search.seeds"),
        ({"search.sampler.name": "tpee"}, "search.sampler.name", "tpee", "Did you mean 'tpe'?"),
        ({"search.sampler": "tpe"}, "search.sampler", "tpe", "must be a mapping"),
        ({"search.sampler.startup_trialz": 2}, "search.sampler.startup_trialz", 2, "Did you mean 'startup_trials'?"),
        (
            {"search.sampler": {"name": "tpe", "startup_trials": "x"}},
            "search.sampler.startup_trials",
            "x",
            "whole number",
        ),
        ({"search.space": 3}, "search.space", 3, "path of a search-space file, or the space itself"),
        ({"search.space": {}}, "", None, "holds no parameter"),
    ],
)
def test_a_fault_of_the_search_is_reported_alone(changes: dict[str, Any], key: str, value: Any, said: str) -> None:
    [fault] = faults_of(job_with(changes, LEVEL))
    assert (fault.key, fault.value) == (key, value) and said in fault.message


@pytest.mark.parametrize(
    ("constraint", "changes", "said"),
    [
        ("perplexity", {}, "compares nothing"),
        ("perplexity <= 1.1 *", {}, "cannot be read"),
        ("perplexiti <= 40", {}, "Did you mean 'perplexity'?"),
        ("perplexity == 'low'", {}, "compares numbers only"),
        ("baseline.lost <= 3", {}, "Did you mean 'loss'?"),
        ("base.loss <= 3", {}, "Did you mean 'baseline'?"),
        ("cycle.learn.loss <= 3", {}, "'cycle.learn.loss' names no phase"),
        ("grow.loss <= 3", {"cycle.grow": None}, "no grow phase; it has baseline, prune, measure, learn."),
        ("measure.loss <= 3", {"cycle.prune": None, "cycle.grow": None}, "no measure phase; it has baseline, learn."),
        ("prune.loss <= 3", {"cycle.continuous": {"every": 5}}, "no prune phase; it has baseline, learn."),
    ],
)
def test_a_constraint_that_no_trial_could_be_held_to_is_refused(
    constraint: str, changes: dict[str, Any], said: str
) -> None:
    [fault] = faults_of(job_with({**changes, "search.constraints": ["loss <= 9", constraint]}))
    assert (fault.key, fault.value) == ("search.constraints", constraint) and said in fault.message


def test_constraints_name_numbers_of_the_result_and_of_phases() -> None:
    rules = ["perplexity <= 1.1 * baseline.perplexity", "measure.loss - learn.loss >= 0", "accuracy > 0.1"]
    raw = job_with({"search.constraints": rules, "search.minimize": ["loss", "params"], "cycle.baseline": None})
    search = check_job(raw, "job.yaml").spec.search
    assert search is not None and search.constraints == tuple(rules) and search.minimize == ("loss", "params")
    assert check_job(search_resolved := check_job(raw, "job.yaml").spec.resolved(), "job.yaml").spec.search == search
    assert search_resolved["search"]["minimize"] == ["loss", "params"]


def test_a_trial_may_have_a_seed_of_its_own() -> None:
    job = check_job(BASE, "job.yaml")
    assert job.with_values({}, seed=5).seed == 5 and job.with_values({}).seed == job.spec.seed == 0
    assert (
        job.with_values({"cycle.prune.level": 0.4}, seed=5).cycle == job.with_values({"cycle.prune.level": 0.4}).cycle
    )


def test_entropy_in_no_direction_that_exists_is_refused() -> None:
    [fault] = faults_of(job_with({"cycle.prune": {"strategy": "entropy", "level": 0.3, "direction": "sideways"}}))
    assert (fault.key, fault.value) == ("cycle.prune.direction", "sideways")
    assert fault.message == "must be 'high' or 'low'."


def test_a_misspelt_option_is_reported_beside_the_one_that_is_missing() -> None:
    found = faults_of(job_with({"cycle.prune": {"strategy": "entropy", "level": 0.3, "dircetion": "high"}}))
    assert {fault.key for fault in found} == {"cycle.prune.dircetion", "cycle.prune.direction"}
    assert any("Did you mean 'direction'?" in fault.message for fault in found)


@pytest.mark.parametrize(
    ("batch", "workers", "accumulation", "fits"),
    [
        (10, 2, 3, False),
        (12, 2, 3, True),
        (16, 3, 1, False),
    ],
)
def test_a_batch_divides_over_workers_and_accumulation(batch: Any, workers: int, accumulation: int, fits: bool) -> None:
    raw = job_with({"training": {"batch_size": batch, "accumulation": accumulation}, "scale": {"workers": workers}})
    if fits:
        assert check_job(raw, "job.yaml").spec.training.batch_size == int(batch)
    else:
        [fault] = faults_of(raw)
        assert fault.key == "training.batch_size" and f"= {workers} x {accumulation}." in fault.message


def test_the_default_batch_is_checked_too() -> None:
    [fault] = faults_of(job_with({"scale": {"workers": 3}}))
    assert (fault.key, fault.value) == ("training.batch_size", 16)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cycle.prune": {"strategy": "entropy", "level": 0.3, "direction": "high"}},
        {"cycle.grow": None},
        {"cycle.learn.gate_warmup_steps": 10},
        {"cycle.grow.ratio": 0},
        {"cycle.cycles": 7, "cycle.level_escalation": 0.1, "cycle.regression": {}, "cycle.plateau": {}},
        {"cycle.continuous": {"every": 5, "events": 2, "remove": 1}},
        {"search": {"controls": ["dense", "no_regrow", "random_random", "rewind", "from_scratch_small"]}},
        {"data": {"name": "c4", "max_tokens": 1000}},
        {"data": {"seq_len": 64, "eval_tokens": 64}},
        {"cycle": {"baseline": {"steps": 1, "lr": 1}}},
        {"cycle.learn.lr": 1},
    ],
)
def test_a_good_job_passes(changes: dict[str, Any]) -> None:
    assert check_job(job_with(changes), "job.yaml").spec.name == "demo"


# All faults at once

FAULTY = """
name: demo
modle: {name: gpt2-nano}
data: {name: c4, seq_len: 4}
training: {batch_size: 10, accumulation: 4, batchsize: 3}
cycle:
  baseline: {steps: 0, lr: 5e-5}
  prune: {strategy: tailor, level: 1.5}
  grow: {strategy: balanced, ratio: 1.2, init: zero}
  learn: {steps: 5, lr: 1.0e-3, gate_warmup_steps: 6, gate_start: low}
search:
  space: spaces/heads.yaml
  trials: 0
  sampler: {name: tpa}
scale: {workers: 3}
"""


def test_all_faults_of_a_job_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "heads.yaml").write_text("cycle.prune.level: {unifrom: [0, 1]}\ncycle.learn.lr: [3]\n")
    path = tmp_path / "job.yaml"
    path.write_text(FAULTY)
    with pytest.raises(SpecError) as refused:
        load_job(path, ["seed=-1", "seed"])
    job, space = str(path), str(tmp_path / "spaces" / "heads.yaml")
    assert {(fault.file, fault.key) for fault in refused.value.faults} == {
        (job, "model"),
        (job, "modle"),
        (job, "data.seq_len"),
        (job, "data.max_tokens"),
        (job, "training.batch_size"),
        (job, "training.batchsize"),
        (job, "cycle.baseline.steps"),
        (job, "cycle.prune.strategy"),
        (job, "cycle.prune.level"),
        (job, "cycle.grow.ratio"),
        (job, "cycle.grow.init"),
        (job, "cycle.learn.gate_warmup_steps"),
        (job, "cycle.learn.gate_start"),
        (job, "search.trials"),
        (job, "search.sampler.name"),
        (space, "cycle.prune.level"),
        (space, "cycle.learn.lr"),
        ("--set", "seed"),
    }
    assert len(refused.value.faults) == 19, "seed twice, everything else once"


def test_a_fault_reads_as_file_key_value_and_message() -> None:
    [fault] = faults_of(job_with({"cycle.prune.strategy": "taylro"}), "jobs/x.yaml")
    assert str(fault).startswith("jobs/x.yaml: cycle.prune.strategy = 'taylro': no 'taylro'. Did you mean 'taylor'?")


def test_the_error_prints_one_fault_a_line_and_survives_a_process_border() -> None:
    with pytest.raises(SpecError) as refused:
        check_job(job_with({"cycle.prune.level": 2, "cycle.grow.ratio": 2}), "job.yaml")
    error = pickle.loads(pickle.dumps(refused.value))
    assert str(error).splitlines() == [str(fault) for fault in refused.value.faults] and len(error.faults) == 2
    assert isinstance(error, UsageError) and error.exit_code == 2


@pytest.mark.parametrize("key", [True, 3, None])
def test_keys_of_a_mapping_that_are_no_text_are_faults_like_others(key: Any) -> None:
    raw = job_with({})
    raw["cycle"]["prune"][key] = 1
    assert any(f"no {key!r}" in fault.message for fault in faults_of(raw))


# The file itself


def refusal_of(path: Path) -> str:
    with pytest.raises(SpecError) as refused:
        load_job(path)
    [fault] = refused.value.faults
    assert fault.file == str(path)
    return fault.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name: demo\nmodel: {name: gpt2\ncycle: 3\n", "line 3, column"),
        ("name: demo\ncycle:\n  cycles: 1\n  cycles: 2\n", "line 4, column 3: key 'cycles' is given twice"),
        ("name: demo\n\tmodel: 3\n", "line 2"),
        ("name: demo\n---\nname: demo\n", "line 2"),
        ("? [a, b]\n: 3\n", "line 1, column 3: a key is a list or mapping"),
        ("name: demo\ntrue: 3\n", "line 2, column 1: key True is no text"),
        ("name: !!python/object:os.system {}\n", "line 1, column 7: tag tag:yaml.org,2002:python/object:os.system"),
        ("budget: {trials: 010}\n", "line 1, column 18: 010 is octal to some readers of YAML and decimal to others"),
        ("name: [*later]\n", "line 1, column 8: alias *later names no anchor before it"),
        ("name: &me [*me]\n", "line 1, column 12: alias *me names no anchor before it that is complete"),
        (f"name: {'[' * 400}{']' * 400}\n", "line 1, column 38: nests deeper than 32 levels"),
        (f"seed: {'9' * 4400}\n", "is a number of more than 100 characters"),
        ("x" * 1_000_001, "larger than 1,000,000 bytes"),
        ("", "holds nothing, not a mapping"),
        ("- name: demo\n", "holds list, not a mapping"),
        ("just text", "holds str, not a mapping"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_with_the_place(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    assert said in refusal_of(path)


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    assert "no such file" in refusal_of(tmp_path / "none.yaml")


def test_a_folder_in_place_of_a_file_is_a_fault(tmp_path: Path) -> None:
    assert "cannot be read" in refusal_of(tmp_path)


def test_a_path_below_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be read" in refusal_of(tmp_path / "file" / "job.yaml")


def test_text_that_is_not_utf8_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    assert "not UTF-8 text (byte 6)" in refusal_of(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"), ("yes", "yes"), ("on", "on"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01"), ("1e", "1e"),
        ("true", True), ("FALSE", False), ("~", None), ("", None), ("'true'", "true"), ('"1"', "1"), ("+1", 1),
        ("-0", 0), ("0o17", 15), ("0x1F", 31), ("5e-5", 5e-5), ("1E3", 1000.0), (".5e1", 5.0), ("-2e+2", -200.0),
        ("1.", 1.0), ("-.inf", float("-inf")), ("{<<: {a: 1}}", {"<<": {"a": 1}}),
    ],
)  # fmt: skip
def test_plain_text_is_read_as_yaml_1_2_does(tmp_path: Path, text: str, value: Any) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"a: {text}\n", encoding="utf-8-sig")
    assert repr(load_mapping(path)["a"]) == repr(value)


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("a: &common {lr: [1]}\nb: *common\nc: [&x 3, *x]\n")
    content = load_mapping(path)
    content["b"]["lr"].append(2)
    assert content == {"a": {"lr": [1]}, "b": {"lr": [1, 2]}, "c": [3, 3]}


@pytest.mark.parametrize("levels", [9, 40])
def test_aliases_that_stand_for_more_than_a_job_can_hold_are_refused(tmp_path: Path, levels: int) -> None:
    """Nine levels of nine stand for 400 million values; forty levels of one are a nest of forty."""
    width = 9 if levels == 9 else 1
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    path = tmp_path / "job.yaml"
    path.write_text("\n".join(lines))
    assert ("10,000 values" if width == 9 else "deeper than 32 levels") in refusal_of(path)


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    content = {
        "text": [
            "1e5",
            "5e-5",
            "yes",
            "2024-01-01",
            "null",
            "é",
            "a: b",
            "",
            "010",
            "0o17",
            "-.5",
            "1:30",
            "a\x85\u2028b",
        ],
        "n": [5e-5, 1, None, True, 1e300, 1e-5, 1e16],
    }
    path = tmp_path / "x.yaml"
    path.write_text(dump_mapping(content), encoding="utf-8")
    assert repr(load_mapping(path)) == repr(content)


# --set


def written(folder: Path, raw: Mapping[str, Any]) -> Path:
    path = folder / "job.yaml"
    path.write_text(dump_mapping(raw))
    return path


def test_overrides_are_read_as_yaml_and_win(tmp_path: Path) -> None:
    overrides = ["cycle.learn.lr=5e-5", " seed = 7 ", "scale.workers=2", "cycle.prune.budget=per_layer", "seed=8",
                 "model.name=a=b", "cycle.learn.seed_second_moments=false"]  # fmt: skip
    spec = load_job(written(tmp_path, BASE), overrides).spec
    assert spec.cycle.learn is not None and spec.cycle.prune is not None
    assert (spec.cycle.learn.lr, spec.cycle.learn.seed_second_moments) == (5e-5, False)
    assert (spec.seed, spec.scale.workers, spec.cycle.prune.budget, spec.model.name) == (8, 2, "per_layer", "a=b")


def test_an_override_can_remove_a_section(tmp_path: Path) -> None:
    assert load_job(written(tmp_path, BASE), ["cycle.grow="]).spec.cycle.grow is None
    assert load_job(written(tmp_path, BASE), ["cycle.grow=null"]).spec.cycle.grow is None


def test_an_override_to_another_strategy_leaves_the_options_of_the_old_one_behind(tmp_path: Path) -> None:
    path = written(tmp_path, job_with({"cycle.prune": {"strategy": "entropy", "level": 0.4, "direction": "low"}}))
    prune = load_job(path, ["cycle.prune.strategy=random"]).spec.cycle.prune
    assert prune is not None and (prune.strategy, prune.level, prune.options) == ("random", 0.4, {})


def test_malformed_overrides_are_reported_with_the_faults_of_the_job(tmp_path: Path) -> None:
    path = written(tmp_path, job_with({"cycle.prune.level": 2}))
    with pytest.raises(SpecError) as refused:
        load_job(path, ["cycle.learn.lr", "=3", "  =3", "seed=1"])
    assert [(fault.file, fault.key) for fault in refused.value.faults] == [
        ("--set", "cycle.learn.lr"), ("--set", "=3"), ("--set", "  =3"), (str(path), "cycle.prune.level"),
    ]  # fmt: skip
    assert "key=value" in refused.value.faults[0].message


def test_a_bad_value_is_blamed_on_where_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path, job_with({"cycle.grow.ratio": 3}))
    with pytest.raises(SpecError) as refused:
        load_job(path, ["cycle.prune.level=9", "cycle.prune.strategy=taylro", "trainign.x=1"])
    assert {(fault.file, fault.key) for fault in refused.value.faults} == {
        ("--set", "cycle.prune.level"),
        ("--set", "cycle.prune.strategy"),
        (str(path), "trainign"),
        (str(path), "cycle.grow.ratio"),
    }


def test_a_fault_of_the_space_is_not_blamed_on_an_override(tmp_path: Path) -> None:
    path = written(tmp_path, job_with({}, {"cycle.prune.level": {"uniform": [0.1, 1.5]}}))
    with pytest.raises(SpecError) as refused:
        load_job(path, ["cycle.prune.level=0.2"])
    assert [fault.file for fault in refused.value.faults] == [f"{path} (search.space)"]


@pytest.mark.parametrize(
    ("text", "value"), [("1:30", "1:30"), ("010", "010"), ("{", "{"), ("[1, 2]", [1, 2]), ("", None)]
)
def test_an_override_that_is_no_yaml_is_text(text: str, value: Any) -> None:
    assert parse_scalar(text) == value


def test_a_job_may_be_a_mapping_and_stays_as_it_is() -> None:
    raw = job_with({}, LEVEL)
    before = copy.deepcopy(raw)
    job = load_job(raw, ["cycle.prune.strategy=random", "seed=3"])
    assert raw == before and job.spec.seed == 3


def test_files_that_a_job_names_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("text")
    (tmp_path / "weights").mkdir()
    spec = load_job(job_with({"data.name": "corpus.txt", "model.name": "weights"})).spec
    assert (spec.data.name, spec.model.name) == (str(tmp_path / "corpus.txt"), str(tmp_path / "weights"))
    assert load_job(job_with({"data.name": "wikitext-2"})).spec.data.name == "wikitext-2"


# The search space


@pytest.mark.parametrize("place", ["work", "work/jobs", "work/.."])
def test_a_space_is_found_from_here_from_the_jobs_folder_and_from_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    jobs = tmp_path / "work" / "jobs" if place != "work/.." else tmp_path / "work"
    jobs.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path / "work" if place == "work" else elsewhere)
    folder = tmp_path / place / "spaces"
    folder.mkdir()
    (folder / "s.yaml").write_text("cycle.prune.level: {uniform: [0.1, 0.5]}")
    job = load_job(written(jobs, job_with({}, "spaces/s.yaml")))
    assert job.space is not None and job.space.paths == ("cycle.prune.level",)


def test_a_missing_space_names_the_places_that_were_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    path = written(jobs, job_with({}, "spaces/none.yaml"))
    with pytest.raises(SpecError) as refused:
        load_job(path)
    [fault] = refused.value.faults
    assert (fault.file, fault.key, fault.value) == (str(path), "search.space", "spaces/none.yaml")
    said = f"no such file; looked in {jobs / 'spaces'}, {tmp_path / 'spaces'}, spaces. As shipped: "
    assert fault.message.startswith(said) and "search_spaces/quickstart.yaml" in fault.message


def test_a_job_takes_the_space_beside_it_before_one_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, level in ((tmp_path, 0.2), (tmp_path / "sub", 0.4)):
        (folder / "spaces").mkdir(parents=True)
        (folder / "spaces" / "s.yaml").write_text(f"cycle.prune.level: {{uniform: [0.1, {level}]}}")
    (tmp_path / "sub" / "jobs").mkdir()
    job = load_job(written(tmp_path / "sub" / "jobs", job_with({}, "spaces/s.yaml")))
    assert job.space is not None and job.space.parameters[0].high == 0.4


def test_a_broken_space_file_is_a_fault_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("a: {choice: [1\n")
    path = written(tmp_path, job_with({"cycle.prune.level": 2}, "s.yaml"))
    with pytest.raises(SpecError) as refused:
        load_job(path)
    assert [fault.file for fault in refused.value.faults] == [str(path), str(tmp_path / "s.yaml")]
    assert "line 2" in refused.value.faults[1].message


def test_faults_in_a_space_file_name_that_file_and_its_key(tmp_path: Path) -> None:
    space = {
        "cycle.prune.strategy": {"choice": ["taylor", "tailor"]},
        "cycle.prune.level": {"uniform": [0.1, 1.5]},
        "scale.workers": {"choice": [1, 2]},
        "cycle.learn.leraning_rate": {"choice": [1]},
        "cycle.grow.ratio": {"uniform": [0, 1], "when": {"cycle.prune.stratgy": "taylor"}},
    }
    (tmp_path / "s.yaml").write_text(dump_mapping(space))
    with pytest.raises(SpecError) as refused:
        load_job(written(tmp_path, job_with({}, "s.yaml")))
    found = {fault.key: fault for fault in refused.value.faults}
    assert len(refused.value.faults) == len(found) == 5
    assert {fault.file for fault in found.values()} == {str(tmp_path / "s.yaml")}
    assert (found["cycle.prune.strategy"].value, found["cycle.prune.level"].value) == ("tailor", 1.5)
    assert "Did you mean 'taylor'?" in found["cycle.prune.strategy"].message
    assert "less than 1" in found["cycle.prune.level"].message
    assert "a space may search under model, data, training, cycle" in found["scale.workers"].message
    assert "unknown key: no 'leraning_rate'" in found["cycle.learn.leraning_rate"].message
    assert "Did you mean 'cycle.prune.strategy'?" in found["cycle.grow.ratio.when"].message


@pytest.mark.parametrize("path", ["scale.lanes", "search.trials", "seed", "name", "modle.name"])
def test_what_is_no_part_of_a_trial_cannot_be_searched(path: str) -> None:
    [(key, _, message)] = space_faults({path: {"integer": [1, 2]}})
    assert key == path and "is not part of a trial" in message


@pytest.mark.parametrize("choices", [["entropy", "taylor"], ["taylor", "entropy"]])
def test_a_choice_of_entropy_without_a_direction_is_refused_once_and_where_it_stands(choices: list[str]) -> None:
    space = {"cycle.grow.ratio": {"uniform": [0, 1]}, "cycle.prune.strategy": {"choice": choices}, **LEVEL}
    [(key, value, message)] = space_faults(space)
    assert (key, value) == ("cycle.prune.strategy", "entropy")
    assert "makes cycle.prune.direction: required by 'entropy'" in message and "'high' or 'low'" in message


@pytest.mark.parametrize("strategies", [["taylor", "entropy"], ["entropy", "random"], ["entropy"]])
def test_an_option_that_exists_under_a_condition_is_accepted(strategies: list[str]) -> None:
    space = {
        "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": "entropy"}},
        "cycle.prune.strategy": {"choice": strategies},
    }
    assert check_job(job_with({}, space), "job.yaml").space is not None


def test_an_option_without_its_condition_is_refused() -> None:
    space = {
        "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
        "cycle.prune.direction": {"choice": ["high", "low"]},
    }
    [(key, value, message)] = space_faults(space)
    assert (key, value) == ("cycle.prune.direction", "high") and "unknown key" in message


def test_an_option_whose_condition_is_too_narrow_is_refused() -> None:
    """At a high level, entropy has no direction."""
    space = {
        "cycle.prune.level": {"uniform": [0.1, 0.5]},
        "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
        "cycle.prune.direction": {
            "choice": ["high", "low"],
            "when": {"cycle.prune.strategy": "entropy", "cycle.prune.level": {"below": 0.3}},
        },
    }
    [(key, _, message)] = space_faults(space)
    assert key == "cycle.prune.direction" and "required by 'entropy'" in message


def test_a_fault_of_a_setting_outside_the_space_is_blamed_on_the_value_that_alone_brings_it_about() -> None:
    space = {"training.weight_decay": {"uniform": [0, 1]}, "training.accumulation": {"choice": [3, 4, 5]}}
    assert [(key, value) for key, value, _ in space_faults(space)] == [
        ("training.accumulation", 3),
        ("training.accumulation", 5),
    ]


def test_a_section_that_the_job_lacks_is_blamed_on_the_parameter_that_opens_it() -> None:
    space = {"training.weight_decay": {"uniform": [0, 1]}, "cycle.learn.lr": {"uniform": [0.1, 0.2]}, **LEVEL}
    [(key, _, message)] = space_faults(space, cycle__learn=None)
    assert key == "cycle.learn.lr" and "makes cycle.learn.steps: required, but missing" in message


@pytest.mark.parametrize(
    ("path", "body", "value"),
    [
        ("cycle.learn.steps", {"uniform": [50, 100]}, None),
        ("cycle.learn.steps", {"log_uniform": [50, 100]}, None),
        ("cycle.learn.steps", {"uniform": [50, 51], "step": 0.25}, 50.0),
        ("cycle.learn.steps", {"uniform": [50, 100], "step": 10}, 50.0),
        ("training.batch_size", {"integer": [8, 32]}, 9),
        ("training.batch_size", {"integer": [8, 32], "step": 3}, 11),
        ("training.batch_size", {"choice": [8, 16, 13]}, 13),
        ("cycle.learn.lr", {"uniform": [0, 1]}, 0.0),
        ("cycle.learn.gate_warmup_steps", {"integer": [0, 20]}, 20),
        ("data.seq_len", {"choice": [64, "long"]}, "long"),
        ("cycle.learn.lr.peak", {"choice": [1]}, None),
    ],
)
def test_a_range_that_holds_values_no_trial_can_take_is_refused(path: str, body: dict[str, Any], value: Any) -> None:
    [(key, shown, _)] = space_faults({path: body}, scale__workers=2)
    assert key == path and (shown == value or value is None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("cycle.learn.steps", {"integer": [50, 100], "step": 10}),
        ("training.batch_size", {"integer": [8, 32], "step": 2}),
        ("cycle.learn.lr", {"choice": [1, 5e-5]}),
        ("cycle.learn.gate_warmup_steps", {"integer": [0, 10]}),
        ("data.tokenizer", {"choice": [None, "gpt2"]}),
    ],
)
def test_a_range_that_every_trial_can_take_is_accepted(path: str, body: dict[str, Any]) -> None:
    assert check_job(job_with({"scale.workers": 2}, {path: body}), "job.yaml").space is not None


def test_values_that_only_fail_together_are_found() -> None:
    space = {"training.batch_size": {"choice": [16, 24]}, "training.accumulation": {"choice": [1, 16]}}
    [(key, value, message)] = space_faults(space)
    assert (key, value) == ("training.batch_size", 24) and "= 1 x 16." in message


def test_fixed_values_of_a_space_are_part_of_the_job_and_may_not_be_overridden(tmp_path: Path) -> None:
    space = {"cycle.prune.strategy": "random", "cycle.prune.level": {"choice": [0.2, 0.4]}}
    path = written(tmp_path, job_with({}, space))
    job = load_job(path)
    assert job.spec.cycle.prune is not None and job.spec.cycle.prune.strategy == "random"
    assert check_job(job.spec.resolved(), "resolved").spec == job.spec
    with pytest.raises(SpecError, match=r"--set: cycle.prune.strategy = 'taylor': the space sets this"):
        load_job(path, ["cycle.prune.strategy=taylor"])


def test_a_fixed_value_that_no_job_can_have_is_refused_in_the_file_that_sets_it() -> None:
    faults = space_faults({"cycle.prune.level": 7, "cycle.learn.lr": {"choice": [1e-3]}, "search.trials": 3})
    assert [(key, value) for key, value, _ in faults] == [("cycle.prune.level", 7), ("search.trials", None)]
    assert "less than 1" in faults[0][2] and "is not part of a trial" in faults[1][2]


def test_points_that_a_rule_excludes_need_not_be_good_ones() -> None:
    space = {"cycle.learn.gate_warmup_steps": {"integer": [0, 20]}, "cycle.learn.steps": {"integer": [5, 20]}}
    assert {key for key, _, _ in space_faults(space)} == {"cycle.learn.gate_warmup_steps"}
    rule = "cycle.learn.gate_warmup_steps <= cycle.learn.steps"
    assert check_job(job_with({}, {**space, "require": [rule]}), "job.yaml").space is not None


@pytest.mark.parametrize(
    ("rules", "value", "said"),
    [
        (["cycle.lern.steps <= 9"], "cycle.lern.steps <= 9", "no 'cycle.lern.steps'. Did you mean 'cycle."),
        (["scale.workers <= 9"], "scale.workers <= 9", "neither in this space nor set in the job"),
        (["cycle.learn.lr > 1"], "cycle.learn.lr > 1", "no point of the space meets it."),
        (["cycle.learn.lr > 2e-3", "cycle.learn.lr < 1e-3"], None, "only 0 of 1000 random points meet all of it"),
        (["cycle.learn.lr == 2e-3"], "cycle.learn.lr == 2e-3", "no point of the space meets it."),
        (["cycle.learn.lr <= 1.01e-5"], None, "random points meet all of it, too few to search among; narrow"),
        (["model.name * 2 <= cycle.learn.lr"], None, "is the text 'gpt2-nano', not a number"),
    ],
)
def test_a_rule_that_cannot_be_met_in_the_job_is_refused(rules: list[str], value: Any, said: str) -> None:
    space = {"cycle.learn.lr": {"log_uniform": [1e-5, 1e-2]}, "require": rules}
    [(key, shown, message)] = space_faults(space)
    assert (key, shown) == ("require", value) and said in message


CONDITIONAL = {
    "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
    "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": "entropy"}},
}
ALL_BUT_CMAES = "These can: gp, grid, nsga2, quasi_random, random, tpe."
THOSE_WITHOUT_BANDIT = "These can: cmaes, gp, grid, nsga2, quasi_random, random, tpe."
ONE_STRATEGY = {**LEVEL, "cycle.prune.strategy": {"choice": ["taylor"]}, "model.name": {"choice": ["gpt2-nano"]}}


@pytest.mark.parametrize(
    ("sampler", "space", "search", "said"),
    [
        ("grid", {"cycle.learn.lr": {"uniform": [0.1, 1]}}, {}, "cycle.learn.lr is continuous; give it a step"),
        ("cmaes", CONDITIONAL, {}, "cycle.prune.strategy is a choice, not a range. "
                                   "These can: gp, grid, nsga2, quasi_random, random, strategy_bandit, tpe."),
        ("cmaes", {"cycle.learn.lr": {"uniform": [0.1, 1]},
                   "cycle.prune.rounds": {"integer": [1, 3], "when": {"cycle.learn.lr": {"above": 0.5}}}}, {},
         "cycle.prune.rounds exists under a condition only. These can: gp, nsga2, quasi_random, random, tpe."),
        ("cmaes", LEVEL, {"minimize": ["loss", "params"]}, f"search.minimize names 2 objectives. {ALL_BUT_CMAES}"),
        ("cmaes", LEVEL, {"constraints": ["perplexity <= 3"]},
         f"it cannot learn from search.constraints. {ALL_BUT_CMAES}"),
        ("strategy_bandit", LEVEL, {}, "none of cycle.prune.strategy, cycle.grow.strategy, cycle.grow.init, "
                                       f"cycle.infer.exit has two choices in its space. {THOSE_WITHOUT_BANDIT}"),
        ("strategy_bandit", ONE_STRATEGY, {}, "has two choices in its space. These can: gp, grid, nsga2,"),
        ("strategy_bandit", CONDITIONAL, {"minimize": ["loss", "params"]},
         "search.minimize names 2 objectives. These can: gp, grid, nsga2, quasi_random, random, tpe."),
    ],
)  # fmt: skip
def test_a_sampler_that_cannot_do_a_search_is_refused_with_those_that_can(
    sampler: str, space: dict[str, Any], search: dict[str, Any], said: str
) -> None:
    changes = {"search.sampler.name": sampler, **{f"search.{key}": value for key, value in search.items()}}
    [fault] = faults_of(job_with(changes, space))
    assert (fault.key, fault.value) == ("search.sampler.name", sampler)
    assert fault.message.startswith("cannot do this search: ") and said in fault.message


@pytest.mark.parametrize("sampler", ["gp", "nsga2", "quasi_random", "random", "tpe"])
def test_the_same_space_drives_every_sampler_that_needs_no_special_one(sampler: str) -> None:
    space = {**CONDITIONAL, "cycle.learn.lr": {"log_uniform": [1e-5, 1e-2]}}
    assert check_job(job_with({"search.sampler.name": sampler}, space), "job.yaml").space is not None


# What comes out


def test_a_resolved_job_checks_to_an_equal_job(tmp_path: Path) -> None:
    space = {
        "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
        "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": ["entropy"]}},
        "data.tokenizer": {"choice": [None, "gpt2"]},
        "cycle.learn.lr": {"log_uniform": [1e-5, 1e-3], "when": {"data.tokenizer": None}},
    }
    (tmp_path / "s.yaml").write_text(dump_mapping(space))
    first = load_job(written(tmp_path, job_with({"search.sampler.startup_trials": 3}, "s.yaml")))
    copied = tmp_path / "copy.yaml"
    copied.write_text(dump_mapping(first.spec.resolved()))
    (tmp_path / "s.yaml").unlink()
    second = load_job(copied)
    assert first.space is not None and second.space is not None
    assert second.spec == first.spec and second.space.parameters == first.space.parameters
    assert len(second.space.parameters) == 4
    search = second.spec.search
    assert search is not None and search.sampler.options == {"startup_trials": 3}


def test_a_resolved_job_holds_every_default() -> None:
    resolved = check_job(BASE, "job.yaml").spec.resolved()
    assert get_path(resolved, "cycle.prune.budget") == "global" and get_path(resolved, "data.seq_len") == 128
    assert get_path(resolved, "cycle.grow.init") == "zero_output" and "search" not in resolved


def test_a_job_without_a_search_has_no_space() -> None:
    assert check_job(BASE, "job.yaml").space is None


def entropy_job() -> Job:
    return check_job(job_with({"cycle.prune": {"strategy": "entropy", "level": 0.3, "direction": "low"}}), "job.yaml")


def test_the_values_of_a_trial_are_filled_in_and_the_job_stays_as_it_is() -> None:
    job = check_job(BASE, "job.yaml")
    spec = job.with_values({"cycle.prune.level": 0.4, "training.batch_size": 8, "cycle.grow.strategy": "random"})
    assert spec.cycle.prune is not None and spec.cycle.grow is not None
    assert (spec.cycle.prune.level, spec.training.batch_size, spec.cycle.grow.strategy) == (0.4, 8, "random")
    assert spec.cycle.grow.ratio == 0.5 and job.with_values({}) == job.spec == check_job(BASE, "job.yaml").spec


def test_a_trial_with_another_strategy_drops_the_options_of_the_jobs_own() -> None:
    prune = entropy_job().with_values({"cycle.prune.strategy": "taylor"}).cycle.prune
    assert prune is not None and (prune.strategy, prune.options, prune.level) == ("taylor", {}, 0.3)


def test_a_trial_with_the_same_strategy_keeps_the_options_of_the_job() -> None:
    prune = entropy_job().with_values({"cycle.prune.strategy": "entropy", "cycle.prune.level": 0.5}).cycle.prune
    assert prune is not None and prune.options == {"direction": "low"}


def test_growth_and_initialisation_each_keep_their_own_options_when_the_other_is_replaced() -> None:
    grow = {"strategy": "gradient_sensitivity", "ratio": 0.5, "init": "split", "form": "gate", "noise": 0.3}
    for values, options in (
        ({"cycle.grow.init": "rewind"}, {"form": "gate"}),
        ({"cycle.grow.strategy": "balanced"}, {"noise": 0.3}),
        ({"cycle.grow.strategy": "balanced", "cycle.grow.init": "split"}, {"noise": 0.3}),
        ({"cycle.grow.strategy": "random", "cycle.grow.init": "gradmax"}, {}),
        ({"cycle.grow.init": "split", "cycle.grow.noise": 0.9}, {"form": "gate", "noise": 0.9}),
    ):
        changed = check_job(apply_values(job_with({"cycle.grow": grow}), values), "job.yaml").spec.cycle.grow
        assert changed is not None and changed.options == options


def test_a_form_that_fits_one_of_the_inits_in_a_space_is_refused_where_the_other_stands() -> None:
    grow = {"strategy": "gradient_sensitivity", "ratio": 0.5, "form": "output"}
    space = {"cycle.grow.init": {"choice": ["zero_output", "small_random"]}}
    with pytest.raises(SpecError) as refused:
        check_job(job_with({"cycle.grow": grow}, space), "job.yaml")
    [fault] = refused.value.faults
    assert (fault.key, fault.value) == ("cycle.grow.init", "small_random")
    assert "makes cycle.grow.form: does not fit init 'small_random', which takes 'gate'" in fault.message


def test_the_options_of_the_new_strategy_are_kept() -> None:
    job = check_job(BASE, "job.yaml")
    prune = job.with_values({"cycle.prune.direction": "high", "cycle.prune.strategy": "entropy"}).cycle.prune
    assert prune is not None and prune.options == {"direction": "high"}


def test_values_that_break_a_rule_of_the_job_are_refused() -> None:
    with pytest.raises(SpecError, match="job.yaml: cycle.prune.direction: required by 'entropy'"):
        check_job(BASE, "job.yaml").with_values({"cycle.prune.strategy": "entropy"})


def test_a_job_cannot_be_changed_after_its_check() -> None:
    prune = check_job(BASE, "job.yaml").spec.cycle.prune
    assert prune is not None
    with pytest.raises(ValueError, match="frozen"):
        prune.level = 0.9


# The files of the repository


def test_the_quickstart_is_there() -> None:
    assert REPOSITORY / "jobs" / "quickstart.yaml" in JOBS


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_of_the_repository_is_good_from_any_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = load_job(path)
    assert check_job(job.spec.resolved(), "resolved").spec == job.spec


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.name)
def test_every_search_space_of_the_repository_is_good_in_the_jobs_that_name_it(path: Path) -> None:
    assert load_space(str(path), "job.yaml").parameters
    users = [job for job in JOBS if get_path(load_mapping(job), "search.space") == f"search_spaces/{path.name}"]
    assert users, "no job uses it, so nothing shows that its paths exist"


@pytest.mark.parametrize("kind", ["prune", "grow"])
def test_every_strategy_can_be_named_in_a_job(kind: str) -> None:
    for name in registry.available(kind):
        examples: dict[str, dict[str, Any]] = {
            "entropy": {"direction": "high"},
            "combined": {"weights": {"taylor": 1.0}},
        }
        needed = examples[name] if registry.option_faults(kind, name, {}) else {}
        raw = job_with({f"cycle.{kind}": {**BASE["cycle"][kind], "strategy": name, **needed}})
        section = getattr(check_job(raw, "job.yaml").spec.cycle, kind)
        assert (section.strategy, section.options) == (name, needed)
