"""The order of phases and control arms: one for real trials and simulated ones, whatever halts or fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.helpers import cpu
from support.jobs import checked_job, quick_plan
from support.sweeps import job_mapping

from raysweep.contracts import GO, Decision, Interrupted
from raysweep.contracts.events import (
    ControlFailed,
    Event,
    LaneStarted,
    PhaseClaimed,
    PhaseFinished,
    Question,
    Reported,
    StepLogged,
    TrialFinished,
)
from raysweep.errors import TrialError
from raysweep.job.plan import Fingerprints, PhasePlan, TrialPlan, make_plan
from raysweep.records.schema import PhaseRecord
from raysweep.strategies.schedulers.none import Rule
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.simulation.curves import Modelled
from raysweep.sweep.simulation.worker import Chance, Counts, Store, Worker
from raysweep.trial.judged import JudgedProgress
from raysweep.trial.phases import run_trial
from raysweep.trial.steps import run_in_order
from raysweep.trial.store.phase_store import PhaseStore

ARMS = ["dense", "no_regrow", "random_random", "from_scratch_small"]


def plan_of(cycles: int = 2, **cycle: Any) -> TrialPlan:
    raw = job_mapping(controls=ARMS)
    raw["cycle"] |= {"cycles": cycles, **cycle}
    raw["search"]["space"] = {"cycle.learn.lr": {"choice": [1e-3]}}
    spec = checked_job(raw, "job.yaml").spec
    return make_plan(spec, {}, trial=1, fingerprints=Fingerprints(model="m", data="d"))


@dataclass
class Recorder:
    """Runs no phase, but notes what it would run: arm, phase and cycle."""

    losses: dict[int, float] = field(default_factory=dict)
    """Loss of the learn phase of each cycle; 3 by default."""
    fails: Callable[[str, PhasePlan], bool] = lambda arm, phase: False
    answer: Callable[[Question], Decision] = lambda question: GO
    arm: str = "main"
    ran: list[tuple[str, str, int]] = field(default_factory=list)
    skipped: list[tuple[str, str, int]] = field(default_factory=list)
    posted: list[Event] = field(default_factory=list)

    def begin_arm(self, arm: str) -> None:
        self.arm = arm

    def skip(self, phase: PhasePlan) -> None:
        self.skipped.append((self.arm, phase.kind, phase.cycle))

    def post(self, event: Event) -> None:
        self.posted.append(event)

    def run(self, phase: PhasePlan, judged: JudgedProgress | None) -> Generator[str, None, PhaseRecord]:
        assert (judged is None) == (self.arm != "main")
        if self.fails(self.arm, phase):
            raise TrialError("no heads are left")
        self.ran.append((self.arm, phase.kind, phase.cycle))
        yield phase.label
        loss = self.losses.get(phase.cycle, 3.0)
        return PhaseRecord(
            trial=1, phase=phase.kind, cycle=phase.cycle, key=phase.key, reused=False, loss=loss, perplexity=10 * loss,
            active_heads=3, head_map=[], params=1, flops_per_token=1.0, steps=phase.steps, tokens=0, seconds=0.0,
            training_flops=1.0 * phase.steps, dense_training_flops=1.0 * phase.steps,
        )  # fmt: skip

    def all_of(self, plan: TrialPlan) -> list[str]:
        return list(run_in_order(plan, self, JudgedProgress(plan=plan, ask=self.answer)))


CYCLE = ["prune", "measure", "grow", "learn"]


def cycles(arm: str, kinds: Iterable[str], *numbers: int) -> list[tuple[str, str, int]]:
    return [(arm, kind, number) for number in numbers for kind in kinds]


def test_the_trials_own_phases_come_first_then_what_each_arm_adds() -> None:
    recorder = Recorder()
    yielded = recorder.all_of(plan_of())
    assert recorder.ran == [
        ("main", "baseline", 0), *cycles("main", CYCLE, 1, 2),
        *cycles("dense", ["learn"], 1, 2),
        ("no_regrow", "learn", 1), *cycles("no_regrow", ["prune", "measure", "learn"], 2),
        *cycles("random_random", CYCLE, 1, 2),
        ("from_scratch_small", "baseline", 2),
    ]  # fmt: skip
    assert recorder.skipped == [
        ("dense", "baseline", 0),
        ("no_regrow", "baseline", 0), ("no_regrow", "prune", 1), ("no_regrow", "measure", 1),
        ("random_random", "baseline", 0),
    ]  # fmt: skip
    assert len(yielded) == len(recorder.ran) and recorder.posted == []


def test_a_trial_that_halts_skips_later_cycles_and_its_arms_go_as_far_as_its_result() -> None:
    recorder = Recorder(losses={1: 3.0, 2: 30.0})
    recorder.all_of(plan_of(3, regression={"ratio": 1.1, "margin": 0.0}))
    own = [step for step in recorder.ran if step[0] == "main"]
    assert own == [
        ("main", "baseline", 0),
        *cycles("main", CYCLE, 1, 2),
    ]  # the second cycle is worse: the first is kept
    assert {cycle for arm, _, cycle in recorder.ran if arm not in ("main", "from_scratch_small")} == {1}
    assert recorder.ran[-1] == ("from_scratch_small", "baseline", 1)


def test_an_arm_that_cannot_be_carried_out_is_reported_and_the_next_one_begins() -> None:
    recorder = Recorder(fails=lambda arm, phase: (arm, phase.kind, phase.cycle) == ("no_regrow", "prune", 2))
    recorder.all_of(plan_of())
    assert recorder.posted == [ControlFailed(trial=1, arm="no_regrow", error="no heads are left")]
    assert ("no_regrow", "learn", 2) not in recorder.ran and ("random_random", "learn", 2) in recorder.ran


def test_a_phase_of_its_own_that_cannot_be_carried_out_ends_the_trial() -> None:
    recorder = Recorder(fails=lambda arm, phase: (phase.kind, phase.cycle) == ("prune", 2))
    with pytest.raises(TrialError):
        recorder.all_of(plan_of())
    assert recorder.ran[-1] == ("main", "learn", 1) and recorder.posted == []


def test_a_trial_is_stopped_behind_a_phase_but_not_behind_its_last() -> None:
    def stop_at(cycle: int) -> Callable[[Question], Decision]:
        stop = Decision(action="stop", reason="worse")
        return lambda question: stop if isinstance(question, Reported) and question.report.cycle == cycle else GO

    stopped = Recorder(answer=stop_at(1))
    with pytest.raises(Interrupted):
        stopped.all_of(plan_of())
    assert stopped.ran[-1] == ("main", "learn", 1)
    through = Recorder(answer=stop_at(2))
    through.all_of(plan_of())
    assert through.ran[-1] == ("from_scratch_small", "baseline", 2)


def told(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Return what events say of the order of a trial, without its numbers."""
    said: list[tuple[Any, ...]] = []
    for event in events:
        match event:
            case PhaseClaimed():
                said.append(("claim", event.key))
            case Reported():
                said.append(("report", event.report.phase, event.report.cycle, event.report.step))
            case StepLogged():
                said.append(("step", event.arm, event.phase, event.cycle, event.point["step"], event.steps))
            case PhaseFinished():
                said.append(("phase", event.record["arm"], event.record["key"]))
            case LaneStarted() | TrialFinished():
                pass
            case _:
                said.append((type(event).__name__,))
    return said


def test_a_simulated_trial_asks_and_posts_what_a_real_one_does(tmp_path: Path) -> None:
    changes = {
        "cycle__cycles": 1,
        "cycle__baseline__steps": 6,
        "cycle__learn__steps": 12,
        "training__evaluate_every": 5,
    }
    made = quick_plan(**changes, search={"controls": ["dense", "from_scratch_small"]})
    plan = TrialPlan.from_json(made.to_json())  # as a worker gets it: arms are sorted by name
    real: list[Event] = []

    def ask(question: Question) -> Decision:
        real.append(question)
        return GO

    for record in run_trial(plan, replace(cpu(), emit=real.append, ask_sweep=ask), PhaseStore(tmp_path)):
        real.append(PhaseFinished(trial=plan.trial, record=record.to_dict()))
    assert told(real) == told(simulated_events(plan))
    assert ("report", "learn", 1, 5) in told(real)


def simulated_events(plan: TrialPlan) -> list[Event]:
    """Return what a simulated worker asks and posts while it runs one trial."""
    seen: list[Event] = []

    class Spy(Dispatcher):
        def ask(self, question: Question) -> Decision:
            seen.append(question)
            return super().ask(question)

        def post(self, event: Event) -> None:
            seen.append(event)
            super().post(event)

    dispatcher = Spy(max_attempts=1, rule=Rule())
    dispatcher.submit(plan)
    dispatcher.close()
    worker = Worker(lane="lane-0", group="g", slowness=1.0, dispatcher=dispatcher, curves=Modelled(diverging=0.0),
                    store=Store(), chance=Chance(seed=1, kill=0.0), counts=Counts())  # fmt: skip
    list(worker.live())
    return seen
