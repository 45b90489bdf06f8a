"""Each rule of early stopping judges planted curves as its source says: by share of compute, by losses at the rung."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from raysweep.contracts import Decision, Report, StoppingRule
from raysweep.job import registry
from raysweep.strategies.schedulers.hyperband import Rule as Hyperband
from raysweep.strategies.schedulers.hyperband import evenly_mixed
from raysweep.strategies.stopping import is_reached, num_best, rungs_from


def report(trial: int, share: float, loss: float, *, cycle: int = 1, step: int | None = None) -> Report:
    step = round(1000 * share) if step is None else step
    return Report(trial=trial, phase="learn", cycle=cycle, step=step, flops=share * 1e9, share=share, loss=loss)


def rule_of(name: str, trials: int = 100, **options: Any) -> StoppingRule:
    return registry.build("schedulers", name, options).build(trials)


def actions(rule: StoppingRule, *reports: Report) -> list[str]:
    return [rule.report(told).action for told in reports]


def at(share: float, losses: Sequence[float]) -> list[Report]:
    """Return one report of each trial, numbered from 1, at the same share."""
    return [report(trial, share, loss) for trial, loss in enumerate(losses, 1)]


# Rungs.


@pytest.mark.parametrize(
    ("first", "reduction", "rungs"),
    [
        (1 / 9, 3, [1 / 9, 1 / 3]),
        (0.25, 2, [0.25, 0.5]),
        (0.3, 3, [0.3, 0.9]),
        (0.5, 3, [0.5]),
        (7**-3, 7, [7**-3, 7**-2, 7**-1]),
    ],
)
def test_rungs_multiply_up_to_the_end_and_leave_it_out(first: float, reduction: float, rungs: list[float]) -> None:
    assert rungs_from(first, reduction) == pytest.approx(rungs)


def test_a_rung_is_reached_at_its_share_however_that_was_summed_up() -> None:
    assert is_reached(0.3, 0.1 + 0.1 + 0.1) and is_reached(0.1 + 0.2, 0.3) and not is_reached(0.3, 0.2999)


@pytest.mark.parametrize(("count", "best"), [(1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (8, 2), (9, 3)])
def test_of_a_number_of_trials_a_third_goes_on_rounded_down_but_one_at_least(count: int, best: int) -> None:
    assert num_best(count, 3) == best


# asha


def test_a_trial_goes_on_if_it_is_among_the_best_third_so_far() -> None:
    losses = [5.0, 6.0, 4.0, 4.5, 4.1, 4.05, 4.06, 3.0, 4.04]
    #         first  -   best  -    -  2 of 6  3 of 7 best  3 of 9
    expected = ["go", "stop", "go", "stop", "stop", "go", "stop", "go", "go"]
    assert actions(rule_of("asha", first=0.4), *at(0.4, losses)) == expected


def test_equal_losses_share_the_better_place() -> None:
    assert actions(rule_of("asha", first=0.4), *at(0.4, [2.0, 2.0, 2.0, 2.1])) == ["go", "go", "go", "stop"]


def test_trials_are_compared_by_their_losses_at_the_rung_not_by_their_latest() -> None:
    rule = rule_of("asha", first=0.4)
    assert actions(rule, report(1, 0.4, 5.0), report(1, 0.9, 1.0)) == ["go", "go"]
    assert actions(rule, report(2, 0.4, 4.0)) == ["go"], "4.0 is worse than 1.0, but better than 5.0"


def test_a_loss_at_a_rung_lies_between_the_evaluations_around_it() -> None:
    rule = rule_of("asha", first=0.4)
    assert actions(rule, report(1, 0.3, 6.0), report(1, 0.5, 4.0), report(1, 0.6, 1.0)) == ["go", "go", "go"]
    assert actions(rule, report(2, 0.39, 2.0)) == ["go"], "the rung is not reached yet"
    stopped = rule.report(report(2, 0.41, 8.2))
    assert stopped.action == "stop", "5.1 stands against 5.0, not against 4.0 or 1.0"
    assert stopped.reason.startswith(
        "loss 5.1000 at 40.0% of its compute, between its evaluations at 39.0% and 41.0%, is number 2 of 2"
    )
    assert actions(rule, report(3, 0.39, 2.0), report(3, 0.41, 7.8)) == ["go", "go"], "4.9"


@pytest.mark.parametrize("name", ["asha", "successive_halving"])
def test_a_whole_model_at_its_tenth_step_is_compared_with_pruned_ones_at_the_same_share(name: str) -> None:
    """Of equal curves none is worse for being evaluated elsewhere: step 10 lies at 25% here, there at 23%, then 46%."""
    rule = rule_of(name, trials=3, first=0.25, reduction=3)

    def curve(share: float) -> float:
        return 5.0 - 4 * share

    for trial, density in ((1, 0.92), (2, 0.86)):
        early, late = 0.25 * density, 0.5 * density
        actions(rule, report(trial, early, curve(early) + 0.1 * trial), report(trial, late, curve(late) + 0.1 * trial))
    assert actions(rule, report(3, 0.25, curve(0.25))) == ["go"]
    worse = rule_of(name, trials=2, first=0.25, reduction=3)
    actions(worse, report(1, 0.23, curve(0.23)), report(1, 0.46, curve(0.46)))
    stopped = worse.report(report(2, 0.25, curve(0.25) + 0.1))
    assert stopped.action == "stop" and "4.1000 at 25.0% of its compute is number 2 of 2" in stopped.reason


def test_a_rung_before_the_first_evaluation_judges_nobody() -> None:
    assert actions(rule_of("asha", first=0.2), *at(0.3, [1.0, 9.0, 5.0])) == ["go", "go", "go"]
    rule = halving(3, first=0.2)
    assert actions(rule, *at(0.3, [1.0, 9.0, 5.0])) == ["pause", "pause", "go"]
    assert verdicts(rule.decided()) == {1: "go", 2: "go"}


def test_a_prune_between_two_evaluations_is_no_line() -> None:
    rule = rule_of("asha", first=0.5)
    assert actions(rule, report(1, 0.49, 1.0), report(1, 0.55, 1.0)) == ["go", "go"]
    assert actions(rule, report(2, 0.45, 9.0), report(2, 0.55, 9.0, cycle=2)) == ["go", "go"]


def test_between_rungs_nothing_is_judged() -> None:
    rule = rule_of("asha")
    assert actions(rule, report(1, 1 / 9, 3.0), report(1, 1 / 3, 2.0)) == ["go", "go"]
    assert actions(rule, report(2, 1 / 9, 2.9), report(2, 0.2, 99.0), report(2, 0.3333, 99.0)) == ["go", "go", "go"]
    assert actions(rule, report(2, 1 / 3, 2.1)) == ["stop"]


def test_steps_do_not_matter_only_compute_does() -> None:
    rule = rule_of("asha", first=0.4)
    assert actions(rule, report(1, 0.4, 3.0, step=40)) == ["go"]
    pruned = [report(2, 0.30, 9.0, step=40), report(2, 0.39, 9.0, step=52), report(2, 0.41, 9.0, step=55)]
    assert actions(rule, *pruned) == ["go", "go", "stop"]


def test_a_report_that_reaches_several_rungs_is_judged_at_each_from_the_lowest() -> None:
    rule = rule_of("asha")
    assert actions(rule, report(1, 0.1, 3.0), report(1, 0.5, 3.0)) == ["go", "go"]
    assert actions(rule, report(2, 1 / 9, 2.0)) == ["go"], "counted at the first rung, where it stands against 3.0"
    assert actions(rule, report(3, 0.1, 2.5)) == ["go"]
    stopped = rule.report(report(3, 0.5, 2.5))
    assert stopped.action == "stop" and "2.5000 at 11.1% of its compute, between" in stopped.reason
    assert actions(rule, report(2, 1 / 3, 2.9)) == ["go"], "trial 3 never counted at the second rung, trial 1 did"


# hyperband


def test_brackets_hold_as_many_trials_as_hyperband_gives_them_evenly_mixed() -> None:
    rule = rule_of("hyperband")
    assert isinstance(rule, Hyperband)
    brackets = [rule.bracket_of(trial) for trial in range(1, 35)]
    assert [brackets[:17].count(bracket) for bracket in (0, 1, 2)] == [3, 5, 9]
    assert brackets[17:] == brackets[:17] and set(brackets[:4]) == {0, 1, 2}


def test_mixing_spreads_every_index() -> None:
    assert evenly_mixed([1, 2]) == [1, 0, 1] and evenly_mixed([3, 3]) == [0, 1] * 3


def test_a_bracket_starts_to_judge_at_its_own_rung_among_its_own_trials() -> None:
    rule = rule_of("hyperband")
    assert isinstance(rule, Hyperband)
    members = {bracket: [t for t in range(1, 35) if rule.bracket_of(t) == bracket][:2] for bracket in (0, 1, 2)}
    for first, _ in members.values():
        assert (
            actions(rule, report(first, 0.05, 1.0), report(first, 1 / 9, 1.0), report(first, 1 / 3, 1.0)) == ["go"] * 3
        )
    judged_at = {
        bracket: [share for share in (0.05, 1 / 9, 1 / 3, 0.9) if actions(rule, report(bad, share, 9.0)) == ["stop"]][
            :1
        ]
        for bracket, (_, bad) in members.items()
    }
    assert judged_at == {0: [], 1: [1 / 3], 2: [1 / 9]}


def test_a_bracket_is_not_judged_by_the_trials_of_another() -> None:
    rule = rule_of("hyperband")
    assert isinstance(rule, Hyperband)
    strict, mild = (next(t for t in range(1, 18) if rule.bracket_of(t) == bracket) for bracket in (2, 1))
    assert actions(rule, report(strict, 1 / 3, 1.0), report(mild, 1 / 3, 9.0)) == ["go", "go"]


# median


def test_a_trial_stops_if_its_best_is_worse_than_the_median_of_running_averages() -> None:
    def others() -> StoppingRule:
        rule = rule_of("median", min_trials=3, grace=0.2)
        for trial, end in ((1, 1.0), (2, 2.0), (3, 3.0)):  # averages up to 0.5: 3, 4, 5; medians of latest losses: 2
            assert actions(rule, report(trial, 0.25, 4.0 + trial), report(trial, 0.5, end)) == ["go", "go"]
        return rule

    assert actions(others(), report(4, 0.5, 3.99)) == ["go"]
    assert actions(others(), report(4, 0.5, 4.0)) == ["go"], "equal to the median"
    assert actions(others(), report(4, 0.5, 4.01)) == ["stop"]


def test_the_best_of_a_trial_counts_not_its_latest() -> None:
    rule = rule_of("median", min_trials=3, grace=0.0)
    actions(rule, *at(0.3, [4.0, 4.0, 4.0]), *at(0.6, [4.0, 4.0, 4.0]))
    assert actions(rule, report(4, 0.3, 3.5), report(4, 0.6, 9.0)) == ["go", "go"]


def test_others_count_by_their_averages_up_to_the_same_share() -> None:
    rule = rule_of("median", min_trials=1, grace=0.0)
    actions(rule, report(1, 0.2, 6.0), report(1, 0.4, 4.0), report(1, 0.8, 0.1))
    assert actions(rule, report(2, 0.5, 4.9)) == ["go"], "against (6 + 4) / 2; what trial 1 did later is no matter"
    assert actions(rule, report(3, 0.5, 5.1)) == ["stop"]


def test_others_that_have_not_come_as_far_do_not_count() -> None:
    rule = rule_of("median", min_trials=2, grace=0.0)
    actions(rule, report(1, 0.2, 1.0), report(2, 0.5, 1.0), report(3, 0.49, 1.0))
    assert actions(rule, report(4, 0.5, 9.0)) == ["go"], "only trial 2 has come to 0.5"
    assert actions(rule, report(3, 0.5, 1.0), report(4, 0.5001, 9.0)) == ["go", "go"]
    assert actions(rule, report(2, 0.6, 1.0), report(3, 0.6, 1.0), report(4, 0.6, 9.0))[-1] == "stop"


def test_nothing_is_judged_within_the_grace() -> None:
    rule = rule_of("median", min_trials=3, grace=0.3)
    actions(rule, *at(0.9, [1.0, 1.0, 1.0]))
    for share in (0.1, 0.2, 0.29):
        actions(rule, *(report(trial, share, 1.0) for trial in (5, 6, 7)))
    assert actions(rule, report(4, 0.29, 9.0)) == ["go"]
    actions(rule, *(report(trial, 0.31, 1.0) for trial in (5, 6, 7)))
    assert actions(rule, report(4, 0.3, 9.0)) == ["stop"]


def test_many_trials_with_many_reports_are_all_remembered() -> None:
    rule = rule_of("median", min_trials=30, grace=0.5)
    for trial in range(1, 31):
        actions(rule, *(report(trial, step / 40, float(trial)) for step in range(1, 41)))
    reason = rule.report(report(31, 0.9, 15.6)).reason
    assert "15.6000 by 90.0%" in reason and "above 15.5000, the median of the averages of 30 others" in reason


# patience


def flat(trial: int, losses: Sequence[float], *, first: float = 0.5, gap: float = 0.1) -> list[Report]:
    return [report(trial, first + gap * number, loss) for number, loss in enumerate(losses)]


def better() -> Report:
    return report(1, 0.01, 0.5)


def test_a_trial_stops_when_its_slope_is_below_the_least() -> None:
    steep, level = [3.0, 2.98, 2.96, 2.94], [3.0, 2.981, 2.962, 2.943]
    for losses, last in ((steep, "go"), (level, "stop")):  # 0.2 and 0.19 nats per share
        rule = rule_of("patience", min_slope=0.1999999, reports=4)
        assert actions(rule, better(), *flat(2, losses)) == ["go", "go", "go", "go", last]


def test_the_slope_is_per_share_of_compute_not_per_report() -> None:
    losses = [3.0, 2.98, 2.96, 2.94]
    rule = rule_of("patience", min_slope=0.3, reports=4)
    assert actions(rule, better(), *flat(2, losses, gap=0.05))[-1] == "go"
    rule = rule_of("patience", min_slope=0.3, reports=4)
    assert actions(rule, better(), *flat(2, losses, gap=0.1))[-1] == "stop"


def test_the_slope_is_that_of_least_squares_over_the_last_reports_alone() -> None:
    rule = rule_of("patience", min_slope=0.5, reports=3)
    assert actions(rule, better(), *flat(2, [9.0, 3.0, 3.0])) == ["go"] * 4, "9.0 is still among the last three"
    assert actions(rule, report(2, 0.8, 2.99)) == ["stop"]
    rule = rule_of("patience", min_slope=0.5, reports=4)  # first minus last would be a fall of 0.33 a share
    assert actions(rule, better(), *flat(2, [3.0, 3.4, 2.7, 2.9]))[-1] == "go"


def test_a_rising_loss_is_no_recovery() -> None:
    assert actions(rule_of("patience"), better(), *flat(2, [3.0, 3.1, 3.2, 3.3]))[-1] == "stop"


def test_what_a_prune_between_two_phases_did_is_no_slope() -> None:
    rule = rule_of("patience", min_slope=0.1, reports=3)
    first = [report(2, 0.3 + 0.05 * n, 3.0 - 0.5 * n, cycle=1) for n in range(3)]
    second = [report(2, 0.5 + 0.05 * n, 4.0 - 0.5 * n, cycle=2) for n in range(3)]
    assert actions(rule, better(), *first, *second) == ["go"] * 7
    assert actions(rule, report(2, 0.65, 3.0, cycle=2), report(2, 0.70, 3.0, cycle=2)) == ["go", "stop"]


def test_a_flat_trial_goes_on_within_its_grace_and_while_it_is_the_best_of_all() -> None:
    rule = rule_of("patience", grace=0.9)
    assert actions(rule, better(), *flat(2, [3.0] * 4), report(2, 0.9, 3.0))[-2:] == ["go", "stop"]
    rule = rule_of("patience")
    assert actions(rule, report(1, 0.1, 3.5), *flat(2, [3.0] * 5)) == ["go"] * 6
    assert actions(rule, report(1, 0.2, 2.9), report(2, 1.0, 3.0)) == ["go", "stop"]


# successive_halving


def halving(trials: int, **options: Any) -> StoppingRule:
    return rule_of("successive_halving", trials, **{"first": 0.4, **options})


def verdicts(decided: dict[int, Decision]) -> dict[int, str]:
    return {trial: decision.action for trial, decision in decided.items()}


def test_a_cohort_waits_for_its_last_then_the_best_third_goes_on() -> None:
    rule = halving(6)
    assert actions(rule, *at(0.4, [5.0, 1.0, 4.0, 2.0, 3.0])) == ["pause"] * 5
    assert rule.decided() == {}
    assert actions(rule, report(6, 0.4, 6.0)) == ["stop"], "the last one is told at once"
    assert verdicts(rule.decided()) == {1: "stop", 2: "go", 3: "stop", 4: "go", 5: "stop"}
    assert rule.decided() == {}, "each is told once"


def test_of_equal_losses_the_lower_number_goes_on() -> None:
    rule = halving(3)
    assert actions(rule, report(3, 0.4, 1.0), report(1, 0.4, 1.0), report(2, 0.4, 1.0)) == ["pause", "pause", "stop"]
    assert verdicts(rule.decided()) == {1: "go", 3: "stop"}


def test_survivors_wait_for_each_other_at_the_next_rung() -> None:
    rule = halving(6, first=1 / 9)
    actions(rule, *at(1 / 9, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert verdicts(rule.decided())[2] == "go"
    assert actions(rule, report(2, 0.2, 0.1), report(2, 1 / 3, 0.1)) == ["go", "pause"]
    assert actions(rule, report(1, 1 / 3, 0.2)) == ["stop"]
    assert verdicts(rule.decided()) == {2: "go"} and actions(rule, report(2, 0.9, 9.0)) == ["go"]


def test_a_trial_that_passed_two_rungs_at_once_waits_for_both() -> None:
    rule = halving(6, first=1 / 9)
    assert actions(rule, report(1, 0.5, 1.0), report(2, 1 / 9, 2.0), *at(1 / 9, [0.0] * 6)[2:])[:2] == [
        "pause",
        "pause",
    ]
    rule = halving(6, first=1 / 9)
    early = report(1, 0.1, 1.0)
    others = at(1 / 9, [0.0, 2.0, 3.0, 4.0, 5.0, 6.0])[1:]
    assert actions(rule, early, report(1, 0.5, 1.0), *others) == ["go", *["pause"] * 5, "stop"]
    assert verdicts(rule.decided()) == {2: "go", 3: "stop", 4: "stop", 5: "stop"}, "1 waits for 2 at the second rung"
    assert actions(rule, report(2, 1 / 3, 1.5)) == ["stop"] and verdicts(rule.decided()) == {1: "go"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_trial_that_ended_without_reporting_holds_nobody_up(when: str) -> None:
    rule = halving(4, reduction=2)
    if when == "before":
        rule.ended(2)
    assert actions(rule, report(1, 0.4, 1.0), report(3, 0.4, 3.0)) == ["pause", "pause"]
    assert rule.decided() == {}
    last = actions(rule, report(4, 0.4, 4.0))
    if when == "after":
        assert last == ["pause"] and rule.decided() == {}
        rule.ended(2)
        assert verdicts(rule.decided()) == {1: "go", 3: "stop", 4: "stop"}
    else:
        assert last == ["stop"] and verdicts(rule.decided()) == {1: "go", 3: "stop"}


def test_a_survivor_that_fails_between_rungs_holds_nobody_up() -> None:
    rule = halving(4, reduction=2, first=0.25)
    actions(rule, *at(0.25, [1.0, 2.0, 3.0, 4.0]))
    assert verdicts(rule.decided()) == {1: "go", 2: "go", 3: "stop"}
    assert actions(rule, report(2, 0.5, 2.0)) == ["pause"]
    rule.ended(1)
    assert verdicts(rule.decided()) == {2: "go"}


def test_a_survivor_that_had_ended_before_its_rung_was_settled_holds_nobody_up() -> None:
    rule = halving(4, reduction=2, first=0.25)
    assert actions(rule, report(1, 0.25, 1.0), report(2, 0.25, 2.0), report(3, 0.25, 3.0)) == ["pause"] * 3
    rule.ended(1)
    assert actions(rule, report(4, 0.25, 4.0)) == ["stop"]
    assert verdicts(rule.decided()) == {2: "go", 3: "stop"}
    assert actions(rule, report(2, 0.5, 2.0)) == ["go"], "alone at the second rung"


def test_only_the_first_report_at_a_rung_counts_there() -> None:
    rule = halving(2)
    assert actions(rule, report(1, 0.4, 5.0), report(1, 0.5, 1.0), report(2, 0.4, 3.0)) == ["pause", "pause", "go"]
    assert verdicts(rule.decided()) == {1: "stop"}


def test_cohorts_are_halved_apart_and_the_last_may_be_smaller() -> None:
    rule = halving(5, cohort=3)
    assert actions(rule, report(4, 0.4, 9.0), report(1, 0.4, 1.0), report(2, 0.4, 2.0)) == ["pause"] * 3
    assert actions(rule, report(5, 0.4, 8.0)) == ["go"], "4 and 5 are all there is of the second cohort"
    assert verdicts(rule.decided()) == {4: "stop"}
    assert actions(rule, report(3, 0.4, 3.0)) == ["stop"] and verdicts(rule.decided()) == {1: "go", 2: "stop"}


def test_a_trial_beyond_the_sweep_goes_on_and_holds_nobody_up() -> None:
    rule = halving(5, cohort=3)
    assert actions(rule, report(6, 0.4, 9.0), report(7, 0.4, 9.0)) == ["go", "go"]
    rule.ended(6)
    assert actions(rule, report(4, 0.4, 1.0), report(5, 0.4, 2.0)) == ["pause", "stop"]


def test_a_cohort_of_which_nobody_is_left_is_settled() -> None:
    rule = halving(2)
    rule.ended(1)
    rule.ended(2)
    assert rule.decided() == {}


# Options.


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("asha", {"reduction": 1}, "greater than 1"),
        ("asha", {"first": 1.0}, "less than 1"),
        ("asha", {"first": 0}, "greater than 0"),
        ("hyperband", {"brackets": 0}, "greater than or equal to 1"),
        ("median", {"grace": 1.0}, "less than 1"),
        ("median", {"min_trials": 0}, "greater than or equal to 1"),
        ("patience", {"reports": 1}, "greater than or equal to 2"),
        ("patience", {"min_slope": 0}, "greater than 0"),
        ("successive_halving", {"cohort": 0}, "greater than or equal to 1"),
        ("successive_halving", {"reduction": float("inf")}, "less than or equal to 100000"),
    ],
)
def test_options_that_make_no_rule_are_refused(name: str, options: dict[str, Any], fault: str) -> None:
    [(option, _, message)] = registry.option_faults("schedulers", name, options)
    assert option in options and fault in message
