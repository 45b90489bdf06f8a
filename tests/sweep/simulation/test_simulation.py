"""A simulated sweep runs the real engine: kills and slow lanes cost time and steps, and change no result."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.jobs import checked_job
from support.sweeps import finished_sweep, job_mapping, make_sweep

from raysweep.cli import main
from raysweep.contracts import GO, Decision
from raysweep.errors import ArchiveError, UsageError
from raysweep.job import registry
from raysweep.job.jobfile import Job
from raysweep.job.yamlfile import dump_mapping
from raysweep.records.folder import SweepFolder
from raysweep.strategies.schedulers.none import Rule
from raysweep.sweep.claims import Claims
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.invariants import INVARIANTS
from raysweep.sweep.simulation.curves import Modelled
from raysweep.sweep.simulation.recorded import Recorded
from raysweep.sweep.simulation.run import WITHOUT_GROUND, Findings, simulate
from raysweep.sweep.simulation.simulation import Adversity

CALM = Adversity(kill=0.0, stragglers=0.0, seed=1)
MODELLED, CONVERGING = Modelled(), Modelled(diverging=0.0)
ROUGH = Adversity(kill=0.3, stragglers=0.25, seed=1)


def job_of(trials: int = 24, lanes: int = 4, attempts: int = 100, **search: Any) -> Job:
    """Return a job whose trials have so many attempts that kills drawn at random never use them up."""
    raw = job_mapping(trials=trials, sampler={"name": "random"}, **search)
    raw["training"] = {"evaluate_every": 10}
    raw["scale"] = {"lanes": lanes, "max_attempts": attempts, "checkpoint_every_steps": 15}
    return checked_job(raw, "job.yaml")


def run(keep: Path, job: Job, adversity: Adversity = CALM, curves: Modelled = MODELLED) -> tuple[Findings, SweepFolder]:
    found = simulate(job, curves, adversity, keep=keep)
    return found, SweepFolder.open(keep, f"SIMULATED-{job.spec.name}")


def outcomes(folder: SweepFolder) -> dict[tuple[int, str], dict[str, Any]]:
    return {(record.trial, record.key): record.outcome() for record in folder.phases()}


def endings(folder: SweepFolder) -> dict[int, tuple[str, float | None]]:
    return {trial: (record.status, record.objective) for trial, record in sorted(folder.trials().items())}


# What a simulation does.


def test_the_same_seed_is_the_same_sweep_and_another_is_killed_elsewhere(tmp_path: Path) -> None:
    found = [
        run(tmp_path / str(at), job_of(12), dataclasses.replace(ROUGH, seed=seed)) for at, seed in enumerate((1, 1, 2))
    ]
    (first, folder), (again, same), (other, _) = found
    for file in ("plans.jsonl", "phases.jsonl", "trials.jsonl", "retries.jsonl"):
        assert (folder.path / file).read_bytes() == (same.path / file).read_bytes()
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(again, seconds=0)
    assert (first.kills, first.virtual_hours) != (other.kills, other.virtual_hours)


def test_kills_and_slow_lanes_cost_steps_and_time_but_change_no_result(tmp_path: Path) -> None:
    calm, undisturbed = run(tmp_path / "calm", job_of())
    rough, disturbed = run(tmp_path / "rough", job_of(), ROUGH)
    assert calm.kills == calm.wasted_steps == 0 and calm.broken == rough.broken == []
    assert rough.kills > 10 and 0 < rough.wasted_steps <= 15 * rough.kills
    assert rough.steps == calm.steps + rough.wasted_steps and rough.virtual_hours > 1.2 * calm.virtual_hours
    assert endings(disturbed) == endings(undisturbed) and outcomes(disturbed) == outcomes(undisturbed)


def test_what_trials_share_is_run_once(tmp_path: Path) -> None:
    found, folder = run(tmp_path, job_of(), curves=CONVERGING)  # a phase that diverges ends half-way
    run_ones = [record for record in folder.phases() if not record.reused]
    assert len({record.key for record in run_ones}) == len(run_ones) == found.phases["run"]
    assert found.steps == 100 + 40 * sum(record.phase == "learn" for record in run_ones)
    assert found.unshared_steps == 24 * 140, "every trial's baseline and learn phase"


def test_a_trial_whose_every_attempt_is_killed_fails_with_as_many_as_are_allowed(tmp_path: Path) -> None:
    found, folder = run(tmp_path, job_of(trials=3, attempts=8), dataclasses.replace(CALM, kill=1.0))
    assert found.trials == {"FAILED": 3} and found.broken == []
    # The first trial passes checkpoints of the shared baseline: such attempts do not count.
    last = {retry.trial: retry.fruitless for retry in folder.retries()}
    assert last == {1: 7, 2: 7, 3: 7}
    attempts = [record.attempts for record in folder.trials().values()]
    assert attempts[0] > 8 and attempts[1:] == [8, 8] and found.kills == sum(attempts)


def test_a_slow_lane_is_three_times_slower(tmp_path: Path) -> None:
    fast, _ = run(tmp_path / "fast", job_of(trials=1))
    slow, _ = run(tmp_path / "slow", job_of(trials=1), dataclasses.replace(CALM, stragglers=1.0))
    assert slow.virtual_hours == pytest.approx(3 * fast.virtual_hours)
    assert fast.lane_use == slow.lane_use == pytest.approx(1.0)


@pytest.mark.parametrize("name", registry.available("schedulers"))
def test_under_every_rule_every_trial_comes_to_an_end_and_every_invariant_holds(name: str, tmp_path: Path) -> None:
    found, folder = run(tmp_path, job_of(trials=30, stopping={"name": name}), ROUGH)
    assert found.broken == [] and sum(found.trials.values()) == 30
    stopped = [record for record in folder.trials().values() if record.status == "STOPPED"]
    assert all(record.stopped for record in stopped) and (name != "none" or not stopped)
    if name in ("asha", "successive_halving"):
        assert len(stopped) > 15, "these rules stop most trials"


def test_synchronous_halving_decides_the_same_whatever_befalls_the_workers(tmp_path: Path) -> None:
    job = job_of(trials=30, stopping={"name": "successive_halving", "cohort": 12})
    _, calm = run(tmp_path / "calm", job)
    _, rough = run(tmp_path / "rough", job, ROUGH)
    assert endings(calm) == endings(rough)


def test_cycles_and_control_arms_and_events_inside_training_are_simulated(tmp_path: Path) -> None:
    raw = job_mapping(trials=12, controls=["dense", "no_regrow", "random_random", "from_scratch_small"])
    raw["cycle"] |= {"cycles": 2, "level_escalation": 0.05}
    raw["search"]["space"] = {"cycle.prune.level": {"uniform": [0.1, 0.3], "step": 0.1}}
    raw["scale"] = {"lanes": 4, "max_attempts": 100}
    found, folder = run(tmp_path / "cycles", checked_job(raw, "job.yaml"), ROUGH, CONVERGING)
    assert found.broken == [] and found.trials == {"COMPLETE": 12}
    assert {"dense", "no_regrow", "random_random", "from_scratch_small"} <= {record.arm for record in folder.phases()}
    raw = job_mapping(trials=6)
    raw["cycle"]["continuous"] = {"every": 10, "remove": 2, "grow": 1}
    raw["search"]["space"] = {"cycle.learn.lr": {"log_uniform": [1e-4, 1e-2]}}
    found, folder = run(tmp_path / "continuous", checked_job(raw, "job.yaml"), ROUGH, CONVERGING)
    assert found.broken == []
    assert {len(record.events or ()) for record in folder.phases() if record.phase == "learn"} == {4 * 3}


def test_replicates_and_the_winners_confirmation_are_run(tmp_path: Path) -> None:
    found, folder = run(tmp_path, job_of(trials=10, seeds=2, top=3), ROUGH, CONVERGING)
    proposers = [proposal.proposer for proposal in folder.proposals().values()]
    assert found.broken == []
    assert (proposers.count("random"), proposers.count("replicate"), proposers.count("confirmation")) == (10, 3, 2)


def test_a_cohort_does_not_wait_for_trials_that_a_used_up_grid_never_proposes(tmp_path: Path) -> None:
    raw = job_of(trials=20, stopping={"name": "successive_halving"}, seeds=2).spec.resolved()
    raw["search"] |= {"sampler": {"name": "grid"}, "space": {"cycle.prune.level": {"choice": [0.1, 0.2, 0.3, 0.4]}}}
    found, folder = run(tmp_path, checked_job(raw, "job.yaml"), curves=CONVERGING)
    assert found.broken == []
    of_search = [trial for trial, proposal in folder.proposals().items() if proposal.proposer == "grid"]
    assert of_search == [1, 2, 3, 4]
    assert folder.reports().keys() == set(of_search), "what is run for statistics is not judged"
    statuses = [folder.trials()[trial].status for trial in of_search]
    assert statuses.count("COMPLETE") == 1 and statuses.count("STOPPED") == 3


# What it finds.


def test_every_invariant_that_needs_no_weights_is_judged(tmp_path: Path) -> None:
    found, _ = run(tmp_path, job_of(trials=2))
    own = {"the sweep comes to its end", "no phase is run twice", "wasted steps <= kills x checkpoint interval"}
    assert set(WITHOUT_GROUND) <= INVARIANTS.keys()
    assert found.invariants.keys() == (INVARIANTS.keys() - set(WITHOUT_GROUND)) | own


def test_a_phase_that_two_lanes_run_at_once_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Claims, "claim", lambda self, trial, key: GO)
    monkeypatch.setattr(Claims, "is_taken", lambda self, key, trial: False)
    found, _ = run(tmp_path, job_of())
    assert any("was run" in fault for fault in found.invariants["no phase is run twice"])


def test_a_trial_that_is_tried_too_often_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(trials=4, attempts=8)
    patient = Dispatcher.__init__
    monkeypatch.setattr(
        Dispatcher, "__init__", lambda self, max_attempts, rule: patient(self, max_attempts=max_attempts + 1, rule=rule)
    )
    found, _ = run(tmp_path, job, dataclasses.replace(CALM, kill=1.0))
    assert len(found.invariants["no trial took more attempts than allowed"]) == 4


def test_a_rule_that_pauses_for_ever_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rule, "report", lambda self, report: Decision(action="pause", reason="for ever"))
    found, _ = run(tmp_path, job_of(trials=5))
    [fault] = found.invariants["the sweep comes to its end"]
    assert "stands still: 5 trials are left" in fault


def test_a_worker_that_loses_its_checkpoints_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysweep.sweep.simulation.worker.Trace.copy", lambda self: type(self)())
    found, _ = run(tmp_path, job_of(), dataclasses.replace(ROUGH, kill=0.7))  # many after a checkpoint, surely
    assert found.invariants["a lost worker costs at most a checkpoint interval"]


# Recorded curves.


def test_trials_change_their_losses_as_recorded_ones_did(tmp_path: Path) -> None:
    source, job = finished_sweep(tmp_path / "results"), job_of(trials=4)
    simulate(job, Recorded(source, job), CALM, keep=tmp_path)
    folder = SweepFolder.open(tmp_path, "SIMULATED-heads")
    for trial in (1, 2, 3, 4):
        losses = [record.loss for record in folder.phases() if record.trial == trial]
        assert losses == pytest.approx([math.log(p) for p in (40.0, 50.0, 50.0, 50.0, 42.5)])
    learn = next(record for record in folder.phases() if record.phase == "learn")
    assert learn.seconds == pytest.approx(2.0)


def test_between_its_ends_a_recorded_curve_is_stretched(tmp_path: Path) -> None:
    source = finished_sweep(tmp_path / "results")
    lines = [json.loads(line) for line in (source.path / "phases.jsonl").read_text().splitlines()]
    for line in lines:
        if line["phase"] == "learn":
            line["evaluations"] = [{"step": 10.0, "loss": math.log(44.0), "training_flops": 0.0}]
    (source.path / "phases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = job_of(trials=1).spec.resolved()
    raw["cycle"]["learn"]["steps"] = 80
    job = checked_job(raw, "job.yaml")
    simulate(job, Recorded(source, job), CALM, keep=tmp_path)
    [learn] = [r for r in SweepFolder.open(tmp_path, "SIMULATED-heads").phases() if r.phase == "learn"]
    measured = {point["step"]: point["loss"] for point in learn.evaluations}
    assert measured[20.0] == pytest.approx(math.log(44.0)), "a quarter of the way, as in the recorded phase"
    assert measured[10.0] == pytest.approx((math.log(50.0) + math.log(44.0)) / 2)


def test_a_sweep_without_a_complete_trial_of_such_phases_has_no_curves(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no complete trial with the phases baseline, prune, measure, grow, learn"):
        Recorded(make_sweep(tmp_path), job_of())


# The command, and what it leaves.


@pytest.fixture
def jobfile(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(dump_mapping(job_of(trials=3, lanes=2).spec.resolved()))
    return path


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_says_that_it_is_a_simulation_and_leaves_nothing(
    jobfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    done = invoke("simulate", jobfile, "--trials", 20, "--lanes", 4, "--kill", 0.05, "--seed", 3)
    assert done.exit_code == 0 and done.stdout.startswith("SIMULATED, nothing was trained: ")
    assert "on 4 lanes" in done.stdout and "16 of 16 held" in done.stdout
    assert list(scratch.iterdir()) == [] and not (tmp_path / "results").exists()


def test_the_command_answers_in_json_and_exits_with_1_where_an_invariant_is_broken(
    jobfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoke("simulate", jobfile, "--trials", 5, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["kills"] == 0
    assert sum(found["trials"].values()) == 5 and found["trials"].keys() <= {"COMPLETE", "DIVERGED"}
    assert not any(found["invariants"].values())
    monkeypatch.setattr(Rule, "report", lambda self, report: Decision(action="pause", reason="for ever"))
    broken = invoke("simulate", jobfile, "--trials", 5)
    assert broken.exit_code == 1 and "broken: the sweep comes to its end: the sweep stands still" in broken.stdout


def test_a_simulated_sweep_that_is_kept_says_so_and_is_never_gone_on_with(jobfile: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert invoke("simulate", jobfile, "--trials", 3, "--keep", kept).exit_code == 0
    folder = SweepFolder.open(kept, "SIMULATED-heads")
    assert folder.simulated and not finished_sweep(tmp_path / "results").simulated
    with pytest.raises(ArchiveError, match="is simulated: it has no models to go on with"):
        folder.lock()
    again = invoke("simulate", jobfile, "--trials", 3, "--keep", kept)
    assert again.exit_code == 2 and "'SIMULATED-heads' is there already" in again.stderr


def test_what_does_not_fit_is_refused(jobfile: Path, tmp_path: Path) -> None:
    assert invoke("simulate", jobfile, "--kill", 1.5).exit_code == 2
    unknown = invoke("simulate", jobfile, "--from", "nowhere", "--results", tmp_path / "results")
    assert unknown.exit_code == 2 and "no 'nowhere'" in unknown.stderr
