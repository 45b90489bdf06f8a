"""Reports count compute, and what the sweep answers is obeyed at the step, with nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.helpers import run_all
from support.jobs import quick_plan

from raysweep.contracts import GO, Decision, Interrupted, Report
from raysweep.contracts.events import Event, PhaseClaimed, PhaseResumed, Question, Reported, StepLogged
from raysweep.job.plan import TrialPlan
from raysweep.records.schema import PhaseRecord
from raysweep.trial.phases import run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.store.phase_store import PhaseStore

Answer = Callable[[Question], Decision | None]


@dataclass
class Sweep:
    """Collects what a trial asks; answers as planted, else `go`."""

    answer: Answer = lambda question: None
    asked: list[Event] = field(default_factory=list)

    def runtime(self) -> Runtime:
        return Runtime(device=torch.device("cpu"), emit=self.asked.append, ask_sweep=self.ask)

    def ask(self, question: Question) -> Decision:
        self.asked.append(question)
        return self.answer(question) or GO

    @property
    def reports(self) -> list[Report]:
        return [event.report for event in self.asked if isinstance(event, Reported)]

    @property
    def claims(self) -> list[str]:
        return [event.key for event in self.asked if isinstance(event, PhaseClaimed)]


def at_a_report(decision: Decision) -> Answer:
    return lambda question: decision if isinstance(question, Reported) else None


def plan_of(**changes: Any) -> TrialPlan:
    return quick_plan(
        **{"cycle__cycles": 1, "cycle__baseline__steps": 6, "cycle__learn__steps": 14,
           "cycle__learn__gate_warmup_steps": 7, "training__evaluate_every": 4, "scale__checkpoint_every_steps": 100}
        | changes
    )  # fmt: skip


def interrupted(plan: TrialPlan, folder: Path, answer: Answer) -> tuple[Decision, list[PhaseRecord], Sweep]:
    """Run a trial until the sweep interrupts it."""
    sweep, records = Sweep(answer), list[PhaseRecord]()
    with pytest.raises(Interrupted) as raised:
        for record in run_trial(plan, sweep.runtime(), PhaseStore(folder)):
            records.append(record)
    return raised.value.decision, records, sweep


def test_only_learning_is_reported_and_its_end_too(tmp_path: Path) -> None:
    sweep = Sweep()
    records = run_all(plan_of(), tmp_path, sweep.runtime())
    assert [(report.phase, report.cycle, report.step) for report in sweep.reports] == [
        ("learn", 1, 4), ("learn", 1, 8), ("learn", 1, 12), ("learn", 1, 14),
    ]  # fmt: skip
    assert sweep.reports[-1].loss == records[-1].loss
    assert [point["step"] for point in records[0].evaluations] == [4.0]
    assert [point["loss"] for point in records[-1].evaluations] == [report.loss for report in sweep.reports[:-1]]


def test_a_trial_that_is_not_judged_reports_nothing_and_is_measured_the_same(tmp_path: Path) -> None:
    judged, spared = Sweep(), Sweep(at_a_report(Decision(action="stop")))
    expected = run_all(plan_of(), tmp_path / "judged", judged.runtime())
    records = run_all(replace(plan_of(), judged=False), tmp_path / "spared", spared.runtime())
    assert judged.reports and spared.reports == []
    assert [record.outcome() for record in records] == [record.outcome() for record in expected]


def test_without_learning_the_baseline_is_reported(tmp_path: Path) -> None:
    sweep = Sweep()
    run_all(plan_of(cycle__prune=None, cycle__grow=None, cycle__learn=None), tmp_path, sweep.runtime())
    assert [(report.phase, report.step, report.share) for report in sweep.reports] == [
        ("baseline", 4, pytest.approx(4 / 6)), ("baseline", 6, 1.0),
    ]  # fmt: skip


def test_shares_count_what_the_heads_that_are_there_cost_over_all_cycles(tmp_path: Path) -> None:
    sweep = Sweep()
    plan = plan_of(cycle__cycles=2, cycle__level_escalation=0.1)
    records = run_all(plan, tmp_path, sweep.runtime())
    dense = records[0].flops_per_token
    first, second = (record for record in records if record.phase == "learn")
    assert first.flops_per_token < dense and second.flops_per_token < first.flops_per_token
    cost = {1: first.flops_per_token / dense, 2: second.flops_per_token / dense}
    for report in sweep.reports:
        earlier = 14 * cost[1] if report.cycle == 2 else 0.0
        assert report.share == pytest.approx((earlier + report.step * cost[report.cycle]) / 28)
    assert first.training_flops == 3 * first.flops_per_token * first.tokens
    assert first.dense_training_flops == 3 * dense * first.tokens
    assert sweep.reports[-1].flops == pytest.approx(first.training_flops + second.training_flops)


def test_events_inside_a_phase_change_what_its_steps_cost(tmp_path: Path) -> None:
    plan = plan_of(cycle__continuous={"every": 6, "first": 2, "events": 2, "remove": 4, "grow": 1})
    (learn,) = (record for record in run_all(plan, tmp_path) if record.phase == "learn")
    after = [event["flops_per_token"] for event in learn.events or () if event["phase"] == "grow"]
    tokens = learn.tokens / 14
    dense = learn.dense_training_flops / learn.tokens / 3
    assert dense > after[0] > after[1] == learn.flops_per_token
    assert learn.training_flops == pytest.approx(3 * tokens * (2 * dense + 6 * after[0] + 6 * after[1]))


@pytest.mark.parametrize(
    ("action", "phase", "changes"),
    [
        pytest.param("leave", "baseline", {}, marks=pytest.mark.slow),
        pytest.param("pause", "learn", {}, marks=pytest.mark.slow),
        ("leave", "learn", {"cycle__continuous": {"every": 5, "remove": 4, "grow": 2}}),
    ],
)
def test_a_trial_that_leaves_at_a_step_goes_on_as_if_it_had_not(
    action: Any, phase: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(**{"cycle__baseline__steps": 14} | changes)
    whole = run_all(plan, tmp_path / "whole")
    decision = Decision(action=action, reason="enough for today")

    def answer(question: Question) -> Decision | None:
        due = isinstance(question, StepLogged) and question.phase == phase
        return decision if due else None

    told, records, _ = interrupted(plan, tmp_path / "parts", answer)
    assert told == decision and phase not in {record.phase for record in records}
    sweep = Sweep()
    again = run_all(plan, tmp_path / "parts", sweep.runtime())
    assert [(e.phase, e.step) for e in sweep.asked if isinstance(e, PhaseResumed)] == [(phase, 10)]
    assert [record.outcome() for record in again] == [record.outcome() for record in whole]


def test_a_report_is_obeyed_at_its_step(tmp_path: Path) -> None:
    plan = plan_of()
    pause = Decision(action="pause")
    decision, _, sweep = interrupted(plan, tmp_path, at_a_report(pause))
    assert decision == pause and [report.step for report in sweep.reports] == [4]
    partial = PhaseStore(tmp_path).find_partial(plan.phases[-1].key)
    assert partial is not None and partial.step == 4
    assert [point["step"] for point in partial.evaluations] == [4.0]


def test_who_is_stopped_writes_no_checkpoint(tmp_path: Path) -> None:
    plan = plan_of()
    stop = Decision(action="stop", reason="worse than most")
    decision, records, _ = interrupted(plan, tmp_path, at_a_report(stop))
    assert decision == stop and [record.phase for record in records] == ["baseline", "prune", "measure", "grow"]
    assert PhaseStore(tmp_path).find_partial(plan.phases[-1].key) is None


def test_a_stop_at_the_end_of_a_cycle_keeps_its_record_and_begins_no_other(tmp_path: Path) -> None:
    plan = plan_of(cycle__cycles=2)
    stop = Decision(action="stop", reason="worse than most")

    def answer(question: Question) -> Decision | None:
        return stop if isinstance(question, Reported) and question.report.step == 14 else None

    decision, records, _ = interrupted(plan, tmp_path, answer)
    assert decision == stop and [(record.phase, record.cycle) for record in records][-1] == ("learn", 1)
    once = Sweep(answer)
    assert len(run_all(plan_of(), tmp_path, once.runtime())) == 5  # a trial that is through is through


def test_a_phase_is_claimed_once_it_is_known_that_nobody_has_run_it(tmp_path: Path) -> None:
    plan = plan_of()
    sweep = Sweep()
    run_all(plan, tmp_path, sweep.runtime())
    assert sweep.claims == [phase.key for phase in plan.phases]
    again = Sweep()
    run_all(plan, tmp_path, again.runtime())
    assert again.claims == []
    assert again.reports == sweep.reports[-1:]  # its end, for a rule that has not heard of it


def test_a_trial_that_is_to_wait_has_not_begun_the_phase(tmp_path: Path) -> None:
    plan = plan_of()
    wait = Decision(action="wait", reason="trial 3 is running this phase")

    def answer(question: Question) -> Decision | None:
        return wait if isinstance(question, PhaseClaimed) and question.key == plan.phases[1].key else None

    decision, records, sweep = interrupted(plan, tmp_path, answer)
    assert decision == wait and [record.phase for record in records] == ["baseline"]
    assert PhaseStore(tmp_path).find(plan.phases[1].key) is None
    assert isinstance(sweep.asked[-1], PhaseClaimed)
