"""The last phase of a trial, in which tokens leave: what it measures, what it shares, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.helpers import cpu, run_all
from support.inline import InlineDriver, new_sweep
from support.jobs import quick_job, quick_plan
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raysweep.cli import main
from raysweep.contracts import Facts
from raysweep.errors import DataError, ModelError, SpecError
from raysweep.job import registry
from raysweep.job.jobfile import check_job
from raysweep.job.plan import Fingerprints
from raysweep.job.search import SearchSpec
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.accounting import flops_per_token
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.records.objectives import outcome_of
from raysweep.records.schema import PhaseRecord
from raysweep.reports.summary import sweep_state
from raysweep.reports.tensorboard.writer import TrialWriter
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.measures.evaluation import seeded_batches
from raysweep.trial.measures.inference import ExitNumbers, check_inference, measure_inference

PNN: dict[str, Any] = {"model__name": "pnn-nano", "cycle__prune": None, "cycle__grow": None, "cycle__learn": None,
                       "cycle__cycles": 1, "data__seq_len": 32, "data__eval_tokens": 512}  # fmt: skip
FIXED = {"exit": "none", "steps": 4}


def pnn_job(**changes: Any) -> dict[str, Any]:
    return quick_job(**PNN | {"cycle__infer": FIXED} | changes)


def records_of(folder: Path, **changes: Any) -> list[PhaseRecord]:
    return run_all(quick_plan(**PNN | {"cycle__infer": FIXED} | changes), folder)


def test_it_is_the_last_phase_and_trains_nothing() -> None:
    plan = quick_plan(model__name="pnn-nano", cycle__infer={"exit": "delta_norm", "threshold": 0.1, "steps": 9})
    assert [phase.label for phase in plan.phases][-3:] == ["grow@2", "learn@2", "infer@2"]
    assert plan.phases[-1].steps == 0


def test_both_halves_at_the_trained_depth_are_the_whole_of_the_baseline(tmp_path: Path) -> None:
    """Every example has equally many labels: the mean of the two halves is what the baseline was measured by."""
    baseline, infer = records_of(tmp_path)
    assert infer.reported is not None and infer.accuracy is not None and baseline.accuracy is not None
    assert (infer.loss + infer.reported["loss"]) / 2 == pytest.approx(baseline.loss, rel=1e-5)
    assert (infer.accuracy + infer.reported["accuracy"]) / 2 == pytest.approx(baseline.accuracy, rel=1e-9)
    assert infer.loss != infer.reported["loss"]
    assert infer.mean_steps == infer.reported["mean_steps"] == 4
    assert (infer.params, infer.head_map) == (baseline.params, baseline.head_map)
    assert infer.error_rate == 1 - infer.accuracy


def test_its_flops_at_fixed_depth_are_those_of_the_accounting(tmp_path: Path) -> None:
    """Not to all digits: 15% of 32 tokens are 4.8, and 5 are predicted."""
    baseline, infer = records_of(tmp_path)
    assert infer.flops_per_token == pytest.approx(baseline.flops_per_token, rel=0.01)
    deeper = records_of(tmp_path, cycle__infer={"exit": "none", "steps": 8})[-1]
    network, family = build_network(ModelSpec(name="pnn-nano"), Facts(vocab_size=1024), seq_len=32, seed=0)
    model = PlasticModel(network, family.sites(network))
    trunk = flops_per_token(model, HeadMap.full(*model.shape), 32, predicted=0)
    assert deeper.flops_per_token - infer.flops_per_token == pytest.approx(trunk, rel=1e-9)


def test_leaving_early_takes_fewer_steps_and_flops(tmp_path: Path) -> None:
    _, fixed = records_of(tmp_path)
    _, early = records_of(tmp_path, cycle__infer={"exit": "random", "mean_steps": 2.5, "steps": 4})
    assert early.mean_steps == pytest.approx(2.5, abs=0.1)
    assert early.flops_per_token < 0.8 * fixed.flops_per_token


def test_heads_that_were_pruned_cost_nothing(tmp_path: Path) -> None:
    changes = {"cycle__prune": {"strategy": "random", "level": 0.5}, "cycle__learn": {"steps": 2, "lr": 1e-3}}
    *_, learn, infer = records_of(tmp_path, **changes)
    whole = records_of(tmp_path)[-1]
    assert infer.active_heads == 4
    assert infer.flops_per_token == pytest.approx(learn.flops_per_token, rel=0.01)
    assert infer.flops_per_token < 0.9 * whole.flops_per_token


def test_it_is_the_same_in_any_batches_and_changes_nothing(tmp_path: Path) -> None:
    plan = quick_plan(**PNN)
    network, _ = build_network(ModelSpec(name="pnn-nano"), Facts(vocab_size=1024), seq_len=32, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    task = registry.load("tasks", "masked_lm")(facts=Facts(vocab_size=1024, mask_token=2))
    examples = torch.randint(3, 1024, (7, 32), generator=torch.Generator().manual_seed(0)).numpy()

    def measured(batch_size: int) -> ExitNumbers:
        return measure_inference(
            network.double(), seeded_batches(examples, range(7), batch_size, task, cpu()),
            registry.build("exits", "delta_norm", {"threshold": 0.42}), steps=4, runtime=cpu(), precision="fp32",
        )  # fmt: skip

    one, many = measured(1), measured(7)
    assert plan.phases[0].steps
    assert 1 < one.mean_steps < 4
    assert (one.mean_steps, one.accuracy) == (many.mean_steps, many.accuracy)
    assert one.loss == pytest.approx(many.loss, rel=1e-9)
    assert all(torch.equal(tensor, before[name].double()) for name, tensor in network.state_dict().items())


def test_trials_that_differ_in_it_alone_train_once(tmp_path: Path) -> None:
    """The step count and the threshold are searched after the fact, on one checkpoint."""
    space = {
        "cycle.infer.exit": {"choice": ["none", "delta_norm"]},
        "cycle.infer.steps": {"integer": [1, 8]},
        "cycle.infer.threshold": {"log_uniform": [0.1, 1.0], "values": 4, "when": {"cycle.infer.exit": "delta_norm"}},
    }
    search = {"space": space, "trials": 5, "minimize": ["loss", "flops_per_token"], "sampler": {"name": "random"}}
    job = check_job(pnn_job(search=search), "quick.yaml")
    folder, driver = new_sweep(tmp_path, job), InlineDriver()
    driver(folder, job, Fingerprints(model="model", data="data"))
    ran = [phase for _, phase in driver.ran]
    assert ran.count("baseline") == 1
    assert ran.count("infer") == len({record.key for record in folder.phases() if record.phase == "infer"}) > 2
    state = sweep_state(folder)
    assert len(state["front"]) > 1
    assert all(trial["objectives"].keys() == {"loss", "flops_per_token"} for trial in state["trials"])
    best = str(state["front"][0])
    shown = CliRunner().invoke(main, ["show", "s", best, "--results", str(tmp_path)])
    assert shown.exit_code == 0 and "infer 1: searched on: accuracy" in shown.output, shown.output
    status = CliRunner().invoke(main, ["status", "s", "--results", str(tmp_path)])
    assert "base → inferred" in status.output and "↓ flops_per_token" in status.output
    assert "Pareto front of loss and flops_per_token" in status.output
    exported = CliRunner().invoke(main, ["export", "s", best, str(tmp_path / "out"), "--results", str(tmp_path)])
    assert exported.exit_code == 0, exported.output


def test_tensorboard_shows_both_halves(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path, 1, {}, None)
    *_, infer = records = records_of(tmp_path / "store", cycle__infer={"exit": "random", "mean_steps": 2, "steps": 4})
    for record in records:
        writer.phase(record)
    writer.finish("COMPLETE", {"loss": infer.loss})
    run = EventAccumulator(str(tmp_path / "1")).Reload()
    assert infer.reported is not None and infer.mean_steps is not None
    assert run.Scalars("infer/mean_steps")[-1].value == pytest.approx(infer.mean_steps)
    assert run.Scalars("infer/reported/accuracy")[-1].value == pytest.approx(infer.reported["accuracy"])
    (_, mark) = run.Tensors("phase")
    assert (
        mark.tensor_proto.string_val[0].decode() == f"infer cycle 1: tokens left after {infer.mean_steps:.2f} steps "
        "on average"
    )


def test_the_error_rate_can_be_minimized(tmp_path: Path) -> None:
    records = records_of(tmp_path)
    judged = outcome_of(SearchSpec(minimize="error_rate", constraints=("infer.accuracy >= 2",)), records, {})
    accuracy = records[-1].accuracy
    assert accuracy is not None and judged.objectives == {"error_rate": 1 - accuracy}
    assert judged.violations["infer.accuracy >= 2"] > 1


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"cycle__infer": {"exit": "none", "steps": 0}}, "cycle.infer.steps", "greater than or equal to 1"),
        ({"cycle__infer": {"exit": "none"}}, "cycle.infer.steps", "required, but missing"),
        ({"cycle__infer": {"exit": "none", "steps": 2, "min_steps": 3}}, "cycle.infer.min_steps", "at most .* = 2"),
        ({"cycle__infer": {"exit": "delta_nrm", "steps": 2}}, "cycle.infer.exit", "Did you mean 'delta_norm'"),
        ({"cycle__infer": {"exit": "delta_norm", "steps": 2}}, "cycle.infer.threshold", "required by 'delta_norm'"),
        ({"cycle__infer": {"exit": "delta_norm", "threshold": 0, "steps": 2}}, "cycle.infer.threshold", "than 0"),
        ({"cycle__infer": {"exit": "kl", "divergence": -1, "steps": 2}}, "cycle.infer.divergence", "than 0"),
        ({"cycle__infer": {"exit": "max_probability", "probability": 1.5, "steps": 2}}, "cycle.infer.probability",
         "less than 1"),
        ({"cycle__infer": {"exit": "patience", "patience": 0, "steps": 2}}, "cycle.infer.patience", "equal to 1"),
        ({"cycle__infer": {"exit": "random", "mean_steps": 7, "steps": 4}}, "cycle.infer.mean_steps",
         "between .* 1 and 4"),
        ({"cycle__infer": {"exit": "learned", "steps": 4}}, "cycle.infer.exit", "step_weights: ponder"),
        ({"cycle__infer": {"exit": "learned", "quantile": 1.0, "steps": 4}, "model__step_weights": "ponder"},
         "cycle.infer.quantile", "less than 1"),
        ({"model__trunk": "layers"}, "model.trunk", "refiner, hierarchical, shared_layer"),
        ({"model__name": "gpt2-nano"}, "cycle.infer", "model.name = 'gpt2-nano' applies no layer twice"),
        ({"cycle__learn": {"steps": 2, "lr": 1e-3}, "cycle__regression": {}}, "cycle.regression", "before cycle.infer"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(changes: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        check_job(pnn_job(**changes), "quick.yaml")
    assert key in [fault.key for fault in caught.value.faults]


def test_a_refused_job_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(pnn_job(model__name="gpt2-nano")))
    result = CliRunner().invoke(main, ["validate", str(job)])
    assert result.exit_code == 2 and "model.name = 'gpt2-nano' applies no layer twice" in result.output
    assert "Traceback" not in result.output


def test_a_pretrained_network_that_tokens_cannot_leave_is_refused_in_preflight(tmp_path: Path) -> None:
    model = ModelSpec.model_validate({"name": "pnn-nano", "trunk": "layers"})
    network, _ = build_network(model, Facts(vocab_size=1024), seq_len=32, seed=0)
    network.save_pretrained(tmp_path)
    spec = check_job(pnn_job(model__name=str(tmp_path)), "quick.yaml").spec
    assert spec.cycle.infer is not None
    with pytest.raises(ModelError, match="separate layers has no step to leave after"):
        check_inference(spec.cycle.infer, spec.model, seq_len=32, examples=4)


def test_one_held_out_example_has_no_halves() -> None:
    with pytest.raises(DataError, match="there is only 1. Raise data.eval_tokens"):
        preflight(check_job(pnn_job(data__eval_tokens=32), "quick.yaml"))
