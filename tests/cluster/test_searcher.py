"""Ray Tune gets a trial whenever a lane would stand idle, and never more than there are lanes for twice over."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.search import Searcher

from raysweep.cluster.searcher import SweepSearcher
from raysweep.records.schema import Proposal


class Sweep:
    """A sweep of some trials as the searcher sees it."""

    def __init__(self, lanes: int, trials: int) -> None:
        self.left, self.waiting, self.more_to_come = trials, 0, False
        self.started: list[int] = []
        self.ended: list[int] = []
        self.searcher = SweepSearcher(
            lanes=lanes, propose=self.propose, finished=lambda: not self.left and not self.more_to_come,
            start=self.start, waiting=lambda: self.waiting, ended=self.ended.append,
        )  # fmt: skip

    def propose(self) -> Proposal | None:
        if not self.left:
            return None
        self.left -= 1
        return Proposal(trial=len(self.started) + 1, values={}, proposer="tpe", attempt=1, seed=0)

    def start(self, proposal: Proposal) -> dict[str, Any]:
        self.started.append(proposal.trial)
        return {"trial": proposal.trial}

    def ask(self) -> Any:
        """Ask as Tune does, which names its trials itself."""
        return self.searcher.suggest(f"tune-{len(self.started) + 1}")

    def end(self, trial: int, how: str = "final") -> None:
        self.searcher.on_trial_complete(f"tune-{trial}", {"ending": how, "done": True})


def test_each_lane_gets_a_trial_and_then_waits_for_one_to_end() -> None:
    sweep = Sweep(lanes=2, trials=4)
    assert [sweep.ask(), sweep.ask(), sweep.ask()] == [{"trial": 1}, {"trial": 2}, None]
    sweep.end(1)
    assert (sweep.ended, sweep.ask(), sweep.ask()) == ([1], {"trial": 3}, None)


def test_for_a_trial_that_waits_for_another_one_its_lane_gets_one_more() -> None:
    sweep = Sweep(lanes=2, trials=9)
    sweep.ask(), sweep.ask()
    sweep.waiting = 1
    assert sweep.ask() == {"trial": 3}
    assert sweep.ask() is None  # one waits, two run
    sweep.waiting = 2
    assert sweep.ask() == {"trial": 4}
    sweep.waiting = 3
    assert sweep.ask() is None  # enough clients, whatever waits
    sweep.waiting = 0
    sweep.end(1)
    assert sweep.ask() is None  # three run on two lanes: the third will have one soon


def test_it_has_finished_when_nothing_runs_and_nothing_is_to_come() -> None:
    sweep = Sweep(lanes=2, trials=1)
    sweep.ask()
    assert sweep.ask() is None
    sweep.end(1)
    assert sweep.ask() == Searcher.FINISHED


def test_it_goes_on_as_long_as_a_rule_may_resume_a_paused_trial() -> None:
    sweep = Sweep(lanes=1, trials=1)
    sweep.ask()
    sweep.more_to_come = True
    sweep.end(1, "paused")
    assert sweep.ask() is None
    sweep.left = 1
    assert sweep.ask() == {"trial": 2}


def test_a_lost_client_ends_no_trial() -> None:
    sweep = Sweep(lanes=1, trials=2)
    sweep.ask()
    sweep.searcher.on_trial_complete("tune-1", {"ending": "final"}, error=True)
    assert sweep.ended == [] and sweep.ask() == {"trial": 2}


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickling_works_though_it_holds_closures(pickler: Any) -> None:
    assert isinstance(pickler.loads(pickler.dumps(Sweep(lanes=1, trials=1).searcher)), SweepSearcher)


def test_tune_may_save_it_whenever_it_likes(tmp_path: Path) -> None:
    searcher = Sweep(lanes=1, trials=1).searcher
    save: Callable[[str], None] = searcher.save
    save(str(tmp_path / "state"))
    searcher.restore(str(tmp_path / "state"))
    assert list(tmp_path.iterdir()) == []
