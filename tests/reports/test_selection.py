"""A large sweep's table: no more rows than asked, the best, the open and the failed among them, in their order."""

from __future__ import annotations

from typing import Any

from raysweep.reports.selection import narrowed


def trial(number: int, objective: float | None = None, status: str = "COMPLETE", error: str | None = None) -> Any:
    return {"trial": number, "objective": objective, "status": status, "error": error}


def kept(trials: list[Any], rows: int, front: tuple[int, ...] = ()) -> list[int]:
    state = {"sweep": "x", "trials": trials, "front": list(front), "counts": {"COMPLETE": len(trials)}}
    found = narrowed(state, rows)
    assert found["counts"] == state["counts"]
    return [each["trial"] for each in found["trials"]]


def test_a_small_sweep_is_shown_whole() -> None:
    assert kept([trial(number, 1.0) for number in range(1, 5)], rows=4) == [1, 2, 3, 4]


def test_the_best_are_shown_in_their_order() -> None:
    assert kept([trial(number, 10.0 - number) for number in range(1, 11)], rows=4, front=(10,)) == [7, 8, 9, 10]


def test_what_does_not_complete_comes_after_what_does() -> None:
    stopped = [trial(number, 0.0, "STOPPED") for number in range(1, 5)]
    assert kept([*stopped, trial(5, 3.0), trial(6, 2.0)], rows=2, front=(6,)) == [5, 6]


def test_open_and_failed_trials_get_a_quarter_each_at_most() -> None:
    failed = [trial(number, None, "FAILED", "it broke") for number in range(1, 21)]
    complete = [trial(number, float(number)) for number in range(21, 41)]
    open_trials = [trial(number, None, "UNFINISHED") for number in range(41, 61)]
    found = kept([*failed, *complete, *open_trials], rows=8, front=(21,))
    assert found == [1, 2, 21, 22, 23, 24, 59, 60]


def test_a_long_front_leaves_room() -> None:
    trials = [trial(number, float(number)) for number in range(1, 21)]
    trials[19]["error"], trials[19]["status"], trials[19]["objective"] = "it broke", "FAILED", None
    assert kept(trials, rows=8, front=tuple(range(19, 0, -1)))[-1] == 20
