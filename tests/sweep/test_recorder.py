"""Events of a running sweep become records, each once, TensorBoard runs, and news for whoever watches."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs import checked_job
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from raysweep.contracts import Report
from raysweep.contracts.events import (
    Event,
    LaneHeard,
    LaneSilent,
    LaneStarted,
    PhaseFinished,
    PhaseResumed,
    Reported,
    StepLogged,
    SweepInterrupted,
    TrialEnding,
    TrialFinished,
    TrialLeft,
    TrialPaused,
    TrialReleased,
    TrialResumed,
    TrialRetried,
    TrialWaiting,
)
from raysweep.errors import RunError
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, TrialPlan, make_plan
from raysweep.records.folder import SweepFolder
from raysweep.records.lines import LaneGroup
from raysweep.records.schema import Proposal
from raysweep.records.silence import read_silent
from raysweep.sweep.recorder import Recorder

VALUES = {"cycle.prune.level": 0.25}


class Witness:
    """Notes everything it is told, in order."""

    def __init__(self) -> None:
        self.news: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *told: self.news.append((name, *told))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [news[1:] for news in self.news if news[0] == name]


@pytest.fixture(scope="module")
def job() -> Job:
    raw = {
        "name": "demo",
        "seed": 7,
        "model": {"name": "gpt2-nano"},
        "cycle": {
            "baseline": {"steps": 20, "lr": 1e-3},
            "prune": {"strategy": "taylor", "level": 0.3},
            "learn": {"steps": 10, "lr": 1e-3},
        },
        "search": {"space": {"cycle.prune.level": {"uniform": [0.1, 0.5]}}, "trials": 2},
    }
    return checked_job(raw, "job.yaml")


@pytest.fixture
def folder(tmp_path: Path, job: Job) -> SweepFolder:
    return SweepFolder.create(tmp_path / "results", job, None, {})


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def recorder(folder: SweepFolder, job: Job, witness: Witness) -> Recorder:
    return Recorder(folder, job, witness)


def start(recorder: Recorder, job: Job, trial: int = 1, attempt: int = 1, of: int | None = None) -> TrialPlan:
    proposal = Proposal(trial=trial, values=VALUES, proposer="tpe", seed=7, attempt=attempt, of=of)
    fingerprints = Fingerprints(model="m", data="d")
    plan = make_plan(job.with_values(VALUES), VALUES, trial=trial, fingerprints=fingerprints)
    recorder.start_trial(proposal, plan)
    return plan


def group(lane: str = "lane-0", name: str = "g") -> Event:
    return LaneStarted(lane=lane, group=name, pids=[11, 12])


def progress(trial: int, phase: str, step: int, steps: int, loss: float = 2.0, arm: str = "main") -> Event:
    point = {"step": float(step), "loss": loss, "lr": 1e-3, "gradient_norm": 1.0}
    cycle = 0 if phase == "baseline" else 1
    return StepLogged(trial=trial, arm=arm, phase=phase, cycle=cycle, steps=steps, point=point)


def resumed() -> Event:
    return PhaseResumed(trial=1, arm="main", phase="baseline", cycle=0, step=5, steps=20)


def phase(
    plan: TrialPlan, index: int, loss: float = 3.0, *, seconds: float = 0.5, reused: bool = False, **changes: Any
) -> Event:
    part = plan.phases[index]
    record = {
        "trial": plan.trial, "phase": part.kind, "cycle": part.cycle, "key": part.key, "reused": reused, "loss": loss,
        "perplexity": 20.0, "active_heads": 3, "head_map": [[0, 0], [0, -1]], "params": 100, "flops_per_token": 10.0,
        "steps": part.steps, "tokens": 64 * part.steps, "seconds": seconds, "schema": 1,
    }  # fmt: skip
    return PhaseFinished(trial=plan.trial, record=record | changes)


def final(trial: int, status: Any = "COMPLETE", attempts: int = 1, **ending: Any) -> Event:
    return TrialFinished(trial=trial, ending=TrialEnding(status=status, **ending), attempts=attempts)


def report(trial: int, step: int, loss: float = 3.0) -> Event:
    made = Report(trial=trial, phase="learn", cycle=1, step=step, flops=5.0, share=0.5, loss=loss)
    return Reported(trial=trial, report=made)


def whole_trial(plan: TrialPlan) -> Iterator[Event]:
    yield progress(plan.trial, "baseline", 10, 20, 4.0)
    yield progress(plan.trial, "baseline", 20, 20, 3.5)
    yield phase(plan, 0, 3.5)
    yield phase(plan, 1, 3.9)
    yield phase(plan, 2, 3.9)
    yield progress(plan.trial, "learn", 10, 10, 3.1)
    yield phase(plan, 3, 3.2)
    yield final(plan.trial)


def lines(folder: SweepFolder, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / file).read_text().splitlines()]


def tensorboard_values(folder: SweepFolder, trial: int) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every scalar of a trial's run, by tag."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder.path / "tensorboard" / str(trial)).glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                numbers = value.tensor.float_val
                if len(numbers) == 1:
                    found.setdefault(value.tag, []).append((event.step, round(numbers[0], 4)))
    return found


def test_a_trial_leaves_its_phases_and_how_it_ended(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    plan = start(recorder, job)
    assert [part.kind for part in plan.phases] == ["baseline", "prune", "measure", "learn"]
    for event in whole_trial(plan):
        recorder.handle(event)
    assert [(record["phase"], record["loss"]) for record in lines(folder, "phases.jsonl")] == [
        ("baseline", 3.5), ("prune", 3.9), ("measure", 3.9), ("learn", 3.2),
    ]  # fmt: skip
    (record,) = lines(folder, "trials.jsonl")
    assert record.pop("seconds") >= 0
    assert record == {
        "trial": 1, "status": "COMPLETE", "values": VALUES, "seed": 7, "proposer": "tpe", "objective": 3.2,
        "attempts": 1, "phases": [part.key for part in plan.phases], "error": None, "schema": 1,
        "halted": None, "controls": {}, "control_errors": {}, "objectives": {"loss": 3.2}, "violations": {},
        "of": None, "stopped": None, "cluster_fault": False,
    }  # fmt: skip


def test_a_failed_trial_is_also_a_record_and_says_why(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    plan = start(recorder, job)
    recorder.handle(phase(plan, 0))
    recorder.handle(final(1, "DIVERGED", error="at step 10 the loss is nan."))
    assert len(folder.phases()) == 1
    record = folder.trials()[1]
    assert (record.status, record.objective, record.error) == ("DIVERGED", None, "at step 10 the loss is nan.")
    assert len(record.phases) == 4  # of the plan, whether they were reached or not


def test_worker_groups_are_recorded(recorder: Recorder, folder: SweepFolder, witness: Witness) -> None:
    recorder.handle(group(name="g1"))
    recorder.handle(group(name="g2"))
    assert folder.lanes() == [LaneGroup("lane-0", name, [11, 12]) for name in ("g1", "g2")]
    assert witness.of("lane_started") == [([11, 12],), ([11, 12],)]


def test_silent_lanes_stand_beside_the_records_until_they_are_heard_or_given_up(
    recorder: Recorder, folder: SweepFolder, witness: Witness
) -> None:
    recorder.handle(LaneSilent(lane="lane-1", seconds=60.0))
    recorder.handle(LaneSilent(lane="lane-2", seconds=70.0))
    silent = read_silent(folder.path)
    assert silent == {"lane-1": pytest.approx(60.0, abs=5.0), "lane-2": pytest.approx(70.0, abs=5.0)}
    recorder.handle(LaneHeard(lane="lane-1"))
    recorder.handle(LaneSilent(lane="lane-2", seconds=301.0, lost=True))
    assert read_silent(folder.path) == {}
    assert witness.of("lane_silent")[-1] == ("lane-2", 301.0, True) and witness.of("lane_heard") == [("lane-1",)]


@pytest.mark.parametrize(
    ("proposed", "on_the_lane", "attempts"),
    [(1, 1, 1), (1, 3, 3), (2, 1, 2), (3, 2, 4), (1, 0, 0), (2, 0, 1)],
    ids=["once", "retried", "resumed", "resumed and retried", "no lane took it", "resumed and no lane took it"],
)
def test_attempts_are_those_of_earlier_drivers_and_those_on_the_lane(
    recorder: Recorder, folder: SweepFolder, job: Job, proposed: int, on_the_lane: int, attempts: int
) -> None:
    start(recorder, job, attempt=proposed)
    recorder.handle(final(1, "FAILED", attempts=on_the_lane))
    assert folder.trials()[1].attempts == attempts


def test_a_phase_that_a_retried_trial_tells_again_is_recorded_once(
    recorder: Recorder, folder: SweepFolder, job: Job
) -> None:
    plan = start(recorder, job)
    recorder.handle(phase(plan, 0, seconds=9.0))
    recorder.handle(TrialRetried(trial=1, attempt=2))
    for event in (phase(plan, 0, seconds=0.1), phase(plan, 1), phase(plan, 1)):
        recorder.handle(event)
    assert [(record.phase, record.seconds) for record in folder.phases()] == [("baseline", 9.0), ("prune", 0.5)]
    assert len(tensorboard_values(folder, 1)["eval/loss"]) == 2


def test_a_phase_that_an_earlier_driver_recorded_is_not_recorded_again(folder: SweepFolder, job: Job) -> None:
    for attempt in (1, 2):
        recorder = Recorder(folder, job, Witness())
        plan = start(recorder, job, attempt=attempt)
        recorder.handle(phase(plan, 0))
    recorder.handle(phase(plan, 1))
    assert [record.phase for record in folder.phases()] == ["baseline", "prune"]


def test_trials_that_share_a_phase_each_record_it(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    first, second = start(recorder, job, 1), start(recorder, job, 2)
    assert first.phases[0].key == second.phases[0].key
    recorder.handle(phase(first, 0))
    recorder.handle(phase(second, 0, reused=True))
    assert [(record.trial, record.reused) for record in folder.phases()] == [(1, False), (2, True)]


def test_trials_on_several_lanes_do_not_mix(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    plans = [start(recorder, job, trial) for trial in (1, 2)]
    for events in zip(*map(whole_trial, plans), strict=True):
        for event in events:
            recorder.handle(event)
    for trial in (1, 2):
        assert [r.phase for r in folder.phases() if r.trial == trial] == ["baseline", "prune", "measure", "learn"]
        assert tensorboard_values(folder, trial)["train/loss"] == [(10, 4.0), (20, 3.5), (32, 3.1)]
    assert sorted(folder.trials()) == [1, 2]


def test_open_trials_are_those_that_have_not_ended(recorder: Recorder, job: Job) -> None:
    assert recorder.open_trials == 0
    start(recorder, job, 1)
    start(recorder, job, 2)
    assert recorder.open_trials == 2
    recorder.handle(final(2, "CANCELLED"))
    assert recorder.open_trials == 1


def test_whoever_watches_hears_everything_in_order(recorder: Recorder, witness: Witness, job: Job) -> None:
    recorder.handle(group())
    plan = start(recorder, job)
    recorder.handle(progress(1, "baseline", 10, 20, 4.0))
    recorder.handle(TrialRetried(trial=1, attempt=2))
    recorder.handle(resumed())
    recorder.handle(phase(plan, 0))
    recorder.handle(final(1))
    names = ["lane_started", "trial_started", "step_logged", "trial_retried", "phase_resumed", "phase_finished",
             "trial_finished"]  # fmt: skip
    assert [name for name, *_ in witness.news] == names
    assert witness.of("trial_started") == [(plan,)]
    assert witness.of("step_logged") == [(1, "baseline", 10, 20, 4.0)]
    assert witness.of("trial_retried") == [(1, 2)]
    assert witness.of("phase_resumed") == [(1, "baseline", 5, 20)]
    assert [(record.phase, record.trial) for (record,) in witness.of("phase_finished")] == [("baseline", 1)]
    assert [(record.status, record.objective) for (record,) in witness.of("trial_finished")] == [("COMPLETE", 3.0)]


def test_whoever_watches_is_told_after_the_archive(folder: SweepFolder, job: Job) -> None:
    """So that what reacts to the news finds it in the archive."""
    known: list[int] = []

    class Reader(Witness):
        def phase_finished(self, record: Any) -> None:
            known.append(len(folder.phases()))

        def trial_finished(self, record: Any) -> None:
            known.append(len(folder.trials()))

    recorder = Recorder(folder, job, Reader())
    plan = start(recorder, job)
    recorder.handle(phase(plan, 0))
    recorder.handle(final(1))
    assert known == [1, 1]


def test_a_trial_leaves_a_tensorboard_run(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    for event in whole_trial(start(recorder, job)):
        recorder.handle(event)
    values = tensorboard_values(folder, 1)
    assert values["train/loss"] == [(10, 4.0), (20, 3.5), (32, 3.1)]
    assert [loss for _, loss in values["eval/loss"]] == [3.5, 3.9, 3.9, 3.2]
    assert [objective for _, objective in values["hparam/objective"]] == [3.2]


def test_a_tensorboard_run_can_be_watched_while_the_trial_runs(
    recorder: Recorder, folder: SweepFolder, job: Job
) -> None:
    assert list((folder.path / "tensorboard").glob("events.*")), "the columns are declared before the first trial"
    start(recorder, job)
    recorder.handle(progress(1, "baseline", 10, 20, 4.0))
    assert tensorboard_values(folder, 1)["train/loss"] == [(10, 4.0)]


def test_what_a_lost_worker_tells_of_an_ended_trial_changes_nothing(
    recorder: Recorder, folder: SweepFolder, witness: Witness, job: Job
) -> None:
    """Ray gave its group up, a new one finished the trial, and then its node came back."""
    plan = start(recorder, job)
    for event in whole_trial(plan):
        recorder.handle(event)
    before = len(witness.news)
    late: list[Event] = [
        progress(1, "baseline", 10, 20),
        phase(plan, 0),
        resumed(),
        report(1, 5),
        final(1, "FAILED"),
    ]
    for event in late:
        recorder.handle(event)
    assert len(witness.news) == before
    assert len(folder.phases()) == 4 and folder.reports() == {}
    assert [record["status"] for record in lines(folder, "trials.jsonl")] == ["COMPLETE"]


def test_an_event_of_a_trial_that_never_started_is_an_error(recorder: Recorder) -> None:
    with pytest.raises(KeyError):
        recorder.handle(progress(9, "baseline", 10, 20))


def test_an_unknown_event_is_an_error(recorder: Recorder) -> None:
    class Surprise:
        pass

    with pytest.raises(AssertionError, match="Surprise"):
        recorder.handle(Surprise())  # type: ignore[arg-type]


def test_a_record_of_another_schema_is_an_error(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    event = phase(start(recorder, job), 0, schema=2)
    with pytest.raises(ValueError, match="schema 2"):
        recorder.handle(event)
    assert folder.phases() == []


def test_trials_may_start_while_events_of_others_come_in(folder: SweepFolder, job: Job) -> None:
    """The searcher starts trials in one thread, events arrive in another."""
    witness = Witness()
    recorder = Recorder(folder, job, witness)
    plans: list[TrialPlan] = []

    def start_all() -> None:
        for trial in range(1, 21):
            plans.append(start(recorder, job, trial))

    starter = threading.Thread(target=start_all)
    starter.start()
    handled = 0
    while handled < 20:
        for plan in plans[handled:]:
            for event in whole_trial(plan):
                recorder.handle(event)
            handled += 1
    starter.join()
    assert sorted(folder.trials()) == list(range(1, 21))
    assert len(folder.phases()) == 80 and recorder.open_trials == 0
    assert len(witness.of("trial_started")) == len(witness.of("trial_finished")) == 20


def test_control_arms_are_recorded_and_stay_out_of_the_trials_own_curve(
    folder: SweepFolder, recorder: Recorder, job: Job
) -> None:
    raw = job.spec.resolved()
    plan = start(recorder, checked_job(raw | {"search": raw["search"] | {"controls": ["dense"]}}, "job.yaml"))
    *own, end = whole_trial(plan)
    arm = plan.controls["dense"][-1]
    event = phase(plan, 3, 3.0, arm="dense", key=arm.key)
    for told in (*own, progress(1, "learn", 10, 10, arm="dense"), event, end):
        recorder.handle(told)
    ended = folder.trials()[1]
    assert ended.controls == {"dense": [plan.phases[0].key, arm.key]}
    assert ended.phases == [part.key for part in plan.phases]
    events = EventAccumulator(str(folder.path / "tensorboard" / "1")).Reload()
    assert [point.value for point in events.Scalars("controls/dense/loss")] == [3.0]
    assert len(events.Scalars("train/loss")) == 3


def changed(job: Job, **parts: Any) -> Job:
    """Return the job with keys of its sections changed: `search__minimize`."""
    raw = job.spec.resolved()
    for path, value in parts.items():
        section, key = path.split("__")
        raw[section][key] = value
    return checked_job(raw, "job.yaml")


def test_a_halted_trial_lists_the_phases_that_it_ran_and_goes_back(folder: SweepFolder, job: Job) -> None:
    job = changed(job, cycle__regression={"ratio": 1.1, "margin": 1.0}, cycle__cycles=2)
    recorder = Recorder(folder, job, Witness())
    plan = start(recorder, job)
    losses = (3.5, 3.9, 3.9, 3.8)
    for index, loss in enumerate(losses):
        recorder.handle(phase(plan, index, loss, perplexity=10 * loss))
    recorder.handle(final(1))
    ended = folder.trials()[1]
    assert ended.halted is None and ended.objective == 3.8  # 38 is not 10% above 35
    plan = start(recorder, job, trial=2)
    for index, loss in enumerate((3.5, 3.9, 3.9, 3.95)):
        recorder.handle(phase(plan, index, loss, perplexity=10 * loss))
    recorder.handle(final(2))
    ended = folder.trials()[2]
    assert ended.halted is not None
    assert (ended.halted["rule"], ended.halted["kept"], ended.objective) == ("regression", plan.phases[0].key, 3.5)
    assert ended.phases == [part.key for part in plan.phases[:4]]  # none of the second cycle


# What a trial came to.


def test_a_trial_leaves_all_objectives_and_what_it_misses(folder: SweepFolder, job: Job) -> None:
    rule = "perplexity <= 0.5 * baseline.perplexity"
    job = changed(job, search__minimize=["flops_per_token", "loss"], search__constraints=[rule])
    recorder = Recorder(folder, job, Witness())
    for event in whole_trial(start(recorder, job, of=1)):
        recorder.handle(event)
    ended = folder.trials()[1]
    assert (ended.objective, ended.objectives) == (10.0, {"flops_per_token": 10.0, "loss": 3.2})
    assert ended.violations == {rule: 10.0} and ended.of == 1
    values = tensorboard_values(folder, 1)
    assert [values[tag][0][1] for tag in ("hparam/objective", "objective/flops_per_token", "objective/loss")] == [
        10.0, 10.0, 3.2,
    ]  # fmt: skip


def test_a_later_attempt_that_finds_its_phases_finished_is_judged_by_all_of_them(folder: SweepFolder, job: Job) -> None:
    first = Recorder(folder, job, Witness())
    first.handle(phase(start(first, job), 0))
    second = Recorder(folder, job, Witness())
    plan = start(second, job, attempt=2)
    for index in range(4):
        second.handle(phase(plan, index, 3.0 + index))
    second.handle(TrialRetried(trial=1, attempt=2))
    for index in range(4):
        second.handle(phase(plan, index, 3.0 + index, reused=True))
    second.handle(final(1))
    assert folder.trials()[1].objective == 6.0
    assert len(folder.phases()) == 4


def test_a_stopped_trial_says_why_and_has_no_objective(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    plan = start(recorder, job)
    for index in range(3):
        recorder.handle(phase(plan, index))
    recorder.handle(final(1, "STOPPED", stopped="worse than the median"))
    ended = folder.trials()[1]
    assert (ended.status, ended.stopped, ended.objective, ended.objectives) == (
        "STOPPED", "worse than the median", None, {},
    )  # fmt: skip


def test_reports_are_recorded_told_and_kept_with_those_of_earlier_sessions(folder: SweepFolder, job: Job) -> None:
    first = Recorder(folder, job, Witness())
    start(first, job)
    first.handle(report(1, 5, 3.5))
    witness = Witness()
    recorder = Recorder(folder, job, witness)
    start(recorder, job, attempt=2)
    recorder.handle(report(1, 10, 3.4))
    assert [(told.step, told.loss) for told in recorder.reports_of(1)] == [(5, 3.5), (10, 3.4)]
    assert list(recorder.reports_of(1)) == folder.reports()[1]
    assert [told.step for (told,) in witness.of("reported")] == [10]
    assert recorder.reports_of(2) == ()


def test_held_out_losses_on_the_way_are_in_the_tensorboard_run(
    recorder: Recorder, folder: SweepFolder, job: Job
) -> None:
    plan = start(recorder, job)
    on_the_way = {10: 4.5, 20: 3.5}
    evaluations = [{"step": float(step), "loss": loss, "training_flops": 1.0} for step, loss in on_the_way.items()]
    recorder.handle(phase(plan, 0, 3.5, evaluations=evaluations))
    assert tensorboard_values(folder, 1)["eval/loss"] == [(10, 4.5), (20, 3.5)]


def test_whoever_watches_hears_of_trials_that_wait_and_go_on(recorder: Recorder, witness: Witness, job: Job) -> None:
    start(recorder, job)
    events: list[Event] = [
        TrialWaiting(trial=1, phase="baseline", cycle=0),
        TrialReleased(trial=1),
        TrialPaused(trial=1),
        TrialResumed(trial=1),
        SweepInterrupted(reason="the budget is used up"),
        TrialLeft(trial=1),
    ]
    for event in events:
        recorder.handle(event)
    assert witness.news[1:] == [
        ("trial_waiting", 1, "baseline", 0),
        ("trial_released", 1),
        ("trial_paused", 1),
        ("trial_resumed", 1),
        ("sweep_interrupted", "the budget is used up"),
        ("trial_left", 1),
    ]


def test_a_paused_trial_goes_on_with_the_record_that_it_has(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    plan = start(recorder, job)
    recorder.handle(progress(1, "baseline", 10, 20, 4.0))
    recorder.handle(phase(plan, 0))
    recorder.handle(TrialPaused(trial=1))
    assert recorder.open_trials == 1
    recorder.handle(TrialResumed(trial=1))
    start(recorder, job)
    for index in range(4):
        recorder.handle(phase(plan, index))
    recorder.handle(final(1))
    assert tensorboard_values(folder, 1)["train/loss"] == [(10, 4.0)]
    assert [loss for _, loss in tensorboard_values(folder, 1)["eval/loss"]] == [3.0] * 4


def test_a_trial_that_is_left_for_another_session_is_open_no_more(
    recorder: Recorder, folder: SweepFolder, job: Job
) -> None:
    start(recorder, job)
    recorder.handle(TrialLeft(trial=1))
    recorder.handle(progress(1, "baseline", 10, 20))  # of a worker that has not heard of it yet
    assert recorder.open_trials == 0 and folder.trials() == {}
    for event in whole_trial(start(recorder, job, attempt=2)):
        recorder.handle(event)
    assert folder.trials()[1].status == "COMPLETE"


# Who waits for a record.


def waiting_for(recorder: Recorder, trial: int) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def wait() -> None:
        try:
            found.append(recorder.record_of(trial))
        except RunError as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, found


def test_whoever_asks_for_a_record_waits_until_it_is_there(recorder: Recorder, folder: SweepFolder, job: Job) -> None:
    plan = start(recorder, job)
    thread, found = waiting_for(recorder, 1)
    for event in whole_trial(plan):
        assert found == []
        recorder.handle(event)
    thread.join()
    assert found == [folder.trials()[1]] and recorder.record_of(1) == found[0]


def test_whoever_waits_for_a_record_that_cannot_come_is_told_why(recorder: Recorder, job: Job) -> None:
    event = phase(start(recorder, job), 0, schema=2)
    thread, found = waiting_for(recorder, 1)
    with pytest.raises(ValueError, match="schema 2"):
        recorder.handle(event)
    thread.join()
    assert "trial 1 ended, but that could not be recorded" in str(found[0]) and "schema 2" in str(found[0])


def test_nobody_waits_for_events_once_they_have_ceased(recorder: Recorder, job: Job) -> None:
    start(recorder, job)
    thread, found = waiting_for(recorder, 1)
    recorder.fail(ConnectionError("the cluster is gone"))
    thread.join()
    assert "the cluster is gone" in str(found[0])
