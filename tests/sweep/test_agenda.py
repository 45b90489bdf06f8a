"""What runs next, in order, whenever the driver is killed: each trial once, none lost."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.jobs import checked_job

from raysweep.contracts import Report
from raysweep.job.jobfile import Job
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Proposal, TrialRecord
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.study import Study

LEVELS = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55]
Key = tuple[int, str, int, int | None]
"""(trial, proposer, seed, of)"""


class FakeStudy(Study):
    """Proposes what follows from all that it was told, so that any difference in that shows."""

    def __init__(self, proposals: Sequence[float] | None = None) -> None:
        self.told: list[tuple[int, str, float | None, int]] = []
        self.adopted: list[int] = []
        self._proposals = proposals

    def ask(self, trial: int) -> dict[str, Any] | None:
        if self._proposals is not None:
            return {"cycle.prune.level": self._proposals[trial - 1]} if trial <= len(self._proposals) else None
        mark = hashlib.sha256(json.dumps([trial, self.told]).encode()).digest()
        return {"cycle.prune.level": LEVELS[mark[0] % len(LEVELS)], "cycle.grow.ratio": mark[1] % 5 / 4}

    def adopt(self, trial: int, values: Mapping[str, Any]) -> None:
        assert values
        self.adopted.append(trial)

    def tell(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        assert record.trial not in {trial for trial, *_ in self.told}, "told twice"
        self.told.append((record.trial, record.status, record.objective, len(reports)))


@pytest.fixture(autouse=True)
def memory_is_disk_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers are killed here, not machines."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@functools.cache
def job_of(search: str) -> Job:
    job: dict[str, Any] = {
        "name": "demo",
        "seed": 7,
        "model": {"name": "gpt2-nano"},
        "cycle": {"prune": {"strategy": "taylor", "level": 0.3}, "grow": {"strategy": "balanced", "ratio": 0.5}},
        "search": {"space": {"cycle.prune.level": {"choice": LEVELS}, "cycle.grow.ratio": {"choice": [0, 0.5, 1]}}}
        | {"trials": 4, "sampler": {"name": "random"}},
    }
    job["search"].update(json.loads(search))
    return checked_job(job, "demo.yaml")


def sweep(tmp_path: Path, **search: Any) -> tuple[SweepFolder, Job]:
    job = job_of(json.dumps(search))
    return SweepFolder.create(tmp_path, job, "demo", {}), job


def loss_of(values: dict[str, Any], seed: int) -> float:
    """A level is as good as it is near 0.3; seeds change that a little."""
    level = values.get("cycle.prune.level", 0.3)
    return abs(level - 0.3) + 0.01 * ((seed * 7919 + round(100 * level) * 104_729) % 10)


def record(proposal: Proposal, status: str = "COMPLETE", **changes: Any) -> TrialRecord:
    loss = loss_of(proposal.values, proposal.seed)
    complete = status == "COMPLETE"
    content: dict[str, Any] = {
        "trial": proposal.trial, "status": status, "values": proposal.values, "seed": proposal.seed,
        "proposer": proposal.proposer, "of": proposal.of, "objective": loss if complete else None,
        "objectives": {"loss": loss} if complete else {}, "attempts": 1, "phases": [], "seconds": 1.0,
    }  # fmt: skip
    return TrialRecord(**(content | changes))


def end(folder: SweepFolder, agenda: Agenda, proposal: Proposal, status: str = "COMPLETE", **changes: Any) -> None:
    ended = record(proposal, status, **changes)
    folder.add_trial(ended)
    agenda.ended(ended, folder.reports().get(proposal.trial, []))


def run_all(folder: SweepFolder, agenda: Agenda) -> list[Proposal]:
    """Run one trial at a time to the end."""
    ran = []
    while (proposal := agenda.next()) is not None:
        end(folder, agenda, proposal)
        ran.append(proposal)
    assert agenda.finished
    return ran


def key(proposal: Proposal) -> Key:
    return proposal.trial, proposal.proposer, proposal.seed, proposal.of


# New trials.


def test_a_job_without_a_space_is_one_trial(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=1, space=None)
    agenda = Agenda(folder, job, None)
    assert agenda.remaining == 1 and not agenda.finished
    [only] = run_all(folder, agenda)
    assert (only.values, key(only)) == ({}, (1, "job", 7, None))
    assert agenda.remaining == 0 and Agenda(folder, job, None).finished


def test_the_search_goes_on_until_it_has_its_trials(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path)
    study = FakeStudy()
    agenda = Agenda(folder, job, study)
    running = [agenda.next() for _ in range(4)]
    assert [key(proposal) for proposal in running if proposal] == [(n, "random", 7, None) for n in (1, 2, 3, 4)]
    assert agenda.next() is None and not agenda.finished and agenda.remaining == 4
    assert list(folder.proposals().values()) == running
    for proposal in running:
        assert proposal is not None
        end(folder, agenda, proposal)
    assert agenda.finished and agenda.remaining == 0
    assert [trial for trial, *_ in study.told] == [1, 2, 3, 4]


def test_a_proposal_is_in_the_archive_before_it_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, job = sweep(tmp_path)
    agenda = Agenda(folder, job, FakeStudy())

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(folder, "add_proposal", full)
    with pytest.raises(OSError, match="no space"):
        agenda.next()


def test_a_sampler_with_nothing_left_ends_the_search(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=9)
    agenda = Agenda(folder, job, FakeStudy([0.1, 0.2, 0.3]))
    assert len(run_all(folder, agenda)) == 3 and agenda.remaining == 0
    again = Agenda(folder, job, FakeStudy([0.1, 0.2, 0.3]))
    assert again.finished and again.next() is None and again.remaining == 0


def test_an_extended_sweep_goes_on_where_it_ended(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path)
    first = run_all(folder, Agenda(folder, job, FakeStudy()))
    study = FakeStudy()
    more = Agenda(folder, sweep(tmp_path / "more", trials=6)[1], study)
    assert more.remaining == 2
    assert [proposal.trial for proposal in run_all(folder, more)] == [5, 6]
    whole, whole_job = sweep(tmp_path / "whole", trials=6)
    expected = run_all(whole, Agenda(whole, whole_job, FakeStudy()))
    assert [p.values for p in [*first, *folder.proposals().values()][4:]] == [p.values for p in expected]


# What an interrupted session left.


def test_what_was_left_unfinished_comes_first_in_order_as_the_next_attempt(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path)
    agenda = Agenda(folder, job, FakeStudy())
    one, two, three = (agenda.next() for _ in range(3))
    assert one and two and three
    end(folder, agenda, two)
    study = FakeStudy()
    resumed = Agenda(folder, job, study)
    assert (study.adopted, [trial for trial, *_ in study.told]) == ([1, 3], [2])
    assert resumed.remaining == 3
    ran = run_all(folder, resumed)
    assert [(p.trial, p.attempt, p.values) for p in ran[:2]] == [(1, 2, one.values), (3, 2, three.values)]
    assert (ran[2].trial, ran[2].attempt) == (4, 1)


def test_a_trial_that_was_put_in_between_sessions_is_run_and_not_told(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path)
    run_all(folder, Agenda(folder, job, FakeStudy()))
    fork = Proposal(trial=5, values={"cycle.prune.level": 0.33}, proposer="fork", attempt=0, seed=7, of=2)
    folder.add_proposal(fork)
    study = FakeStudy()
    agenda = Agenda(folder, job, study)
    assert agenda.remaining == 1 and study.adopted == []
    assert [(p.trial, p.attempt, p.of) for p in run_all(folder, agenda)] == [(5, 1, 2)]
    assert [trial for trial, *_ in study.told] == [1, 2, 3, 4]


def test_a_fork_takes_no_trial_of_the_search(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path)
    agenda = Agenda(folder, job, FakeStudy())
    first = agenda.next()
    assert first
    end(folder, agenda, first)
    folder.add_proposal(Proposal(trial=2, values={}, proposer="fork", attempt=0, seed=7, of=1))
    resumed = Agenda(folder, job, FakeStudy())
    assert resumed.remaining == 4
    assert [(p.trial, p.proposer) for p in run_all(folder, resumed)] == [
        (2, "fork"), (3, "random"), (4, "random"), (5, "random"),
    ]  # fmt: skip


def test_the_study_hears_what_trials_reported(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2)
    agenda = Agenda(folder, job, FakeStudy())
    one = agenda.next()
    assert one
    told = Report(trial=1, phase="learn", cycle=1, step=5, flops=1.0, share=0.5, loss=3.0)
    folder.add_report(told)
    folder.add_trial(record(one, "STOPPED", stopped="slow"))
    study = FakeStudy()
    Agenda(folder, job, study)
    assert study.told == [(1, "STOPPED", None, 1)]


# Pauses.


def test_a_paused_trial_is_put_aside_until_its_rule_resumes_it(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2)
    agenda = Agenda(folder, job, FakeStudy())
    one, two = agenda.next(), agenda.next()
    assert one and two
    agenda.paused(1)
    end(folder, agenda, two)
    assert agenda.next() is None and not agenda.finished and agenda.remaining == 1
    agenda.resumed(1)
    assert agenda.next() == one
    assert len((folder.path / "plans.jsonl").read_text().splitlines()) == 2, "no attempt was lost"
    end(folder, agenda, one)
    assert agenda.finished


def test_a_rule_may_stop_a_paused_trial(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2)
    agenda = Agenda(folder, job, FakeStudy())
    one, two = agenda.next(), agenda.next()
    assert one and two
    for trial in (1, 2):
        agenda.paused(trial)
    end(folder, agenda, one, "STOPPED")
    agenda.resumed(2)
    end(folder, agenda, two, "FAILED")  # no lane is left
    assert agenda.next() is None and agenda.finished


def test_a_resumed_sweep_takes_up_paused_trials_unless_its_rule_pauses_them_again(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=3)
    agenda = Agenda(folder, job, FakeStudy())
    for trial in (1, 2):
        assert agenda.next()
        agenda.paused(trial)
    resumed = Agenda(folder, job, FakeStudy())
    resumed.paused(1)
    taken = [resumed.next(), resumed.next(), resumed.next()]
    assert [proposal and (proposal.trial, proposal.attempt) for proposal in taken] == [(2, 2), (3, 1), None]
    resumed.resumed(1)
    again = resumed.next()
    assert again and again.trial == 1


# Seeds.


def test_with_one_seed_nothing_is_run_again(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path)
    assert {p.proposer for p in run_all(folder, Agenda(folder, job, FakeStudy()))} == {"random"}


def test_the_best_points_are_run_on_more_seeds_and_the_best_of_those_is_confirmed(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=4, seeds=3, top=2)
    levels = [0.5, 0.35, 0.1, 0.3]
    ran = run_all(folder, agenda := Agenda(folder, job, FakeStudy(levels)))
    by_loss = sorted(range(1, 5), key=lambda trial: loss_of({"cycle.prune.level": levels[trial - 1]}, 7))
    expected = {(of, seed) for of in by_loss[:2] for seed in (8, 9)}
    replicates = [p for p in ran if p.proposer == "replicate"]
    assert {(p.of, p.seed) for p in replicates} == expected and len(replicates) == 4
    assert all(p.of is not None and p.values == {"cycle.prune.level": levels[p.of - 1]} for p in replicates)

    def mean(trial: int) -> float:
        return sum(loss_of({"cycle.prune.level": levels[trial - 1]}, seed) for seed in (7, 8, 9)) / 3

    winner = min(by_loss[:2], key=mean)
    assert [(p.of, p.seed) for p in ran[8:]] == [(winner, 10), (winner, 11), (winner, 12)]
    assert {p.proposer for p in ran[8:]} == {"confirmation"}
    assert agenda.remaining == 0


def test_the_winner_is_the_best_by_the_mean_not_on_the_searchs_seed(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2, seeds=2)
    agenda = Agenda(folder, job, FakeStudy([0.1, 0.2]))
    losses = {(1, 7): 1.0, (2, 7): 1.1, (1, 8): 2.0, (2, 8): 1.2}
    confirmed = []
    while (p := agenda.next()) is not None:
        loss = losses.get((p.of or p.trial, p.seed), 1.0)
        end(folder, agenda, p, objective=loss, objectives={"loss": loss})
        confirmed += [p.of] if p.proposer == "confirmation" else []
    assert confirmed == [2, 2]


def test_replicates_of_the_best_wait_for_the_search(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2, seeds=2, top=1)
    agenda = Agenda(folder, job, FakeStudy([0.3, 0.5]))
    one, two = agenda.next(), agenda.next()
    assert one and two
    end(folder, agenda, one)
    assert agenda.next() is None and not agenda.finished
    end(folder, agenda, two)
    replicate = agenda.next()
    assert replicate and key(replicate) == (3, "replicate", 8, 1)
    assert agenda.next() is None, "the winner is known when the replicate has ended"
    end(folder, agenda, replicate)
    assert [key(p)[1:] for p in run_all(folder, agenda)] == [("confirmation", 9, 1), ("confirmation", 10, 1)]


@pytest.mark.parametrize("top", [None, 2, 5])
def test_where_all_points_are_replicated_no_lane_waits_for_the_search(tmp_path: Path, top: int | None) -> None:
    folder, job = sweep(tmp_path, trials=2, seeds=3, top=top)
    agenda = Agenda(folder, job, FakeStudy([0.3, 0.5]))
    one, two = agenda.next(), agenda.next()
    assert one and two
    end(folder, agenda, one)
    first = agenda.next()
    assert first and key(first) == (3, "replicate", 8, 1)
    end(folder, agenda, two)  # while another replicate of the first point is still to come
    others = [agenda.next() for _ in range(4)]
    assert [p and (p.of, p.seed) for p in others] == [(1, 9), (2, 8), (2, 9), None]
    for p in (first, *others):
        if p:
            end(folder, agenda, p)
    assert [p.proposer for p in run_all(folder, agenda)] == ["confirmation"] * 3


def test_a_point_that_was_proposed_twice_is_replicated_once(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=3, seeds=2, top=2)
    ran = run_all(folder, agenda := Agenda(folder, job, FakeStudy([0.3, 0.3, 0.5])))
    assert [p.of for p in ran if p.proposer == "replicate"] == [1, 3]
    assert agenda.remaining == 0


def test_points_that_break_a_constraint_are_not_among_the_best(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2, seeds=2, top=1, constraints=["loss <= 1"])
    agenda = Agenda(folder, job, FakeStudy([0.3, 0.5]))
    ran = []
    while (p := agenda.next()) is not None:
        level = p.values["cycle.prune.level"]
        end(folder, agenda, p, violations={"loss <= 1": 1.0 if level == 0.3 else 0.0})
        ran.append(p)
    assert [(p.proposer, p.of) for p in ran[2:]] == [("replicate", 2), ("confirmation", 2), ("confirmation", 2)]


def test_points_that_did_not_complete_are_not_replicated(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=3, seeds=2)
    agenda = Agenda(folder, job, FakeStudy([0.3, 0.4, 0.5]))
    for status in ("FAILED", "DIVERGED", "STOPPED"):
        p = agenda.next()
        assert p
        end(folder, agenda, p, status)
    assert agenda.next() is None and agenda.finished and agenda.remaining == 0


def test_a_point_that_failed_on_a_seed_is_no_winner_over_one_that_did_not(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2, seeds=2)
    agenda = Agenda(folder, job, FakeStudy([0.3, 0.55]))
    ran = []
    while (p := agenda.next()) is not None:
        end(folder, agenda, p, "DIVERGED" if (p.proposer, p.of) == ("replicate", 1) else "COMPLETE")
        ran.append(p)
    assert [p.of for p in ran if p.proposer == "confirmation"] == [2, 2]
    assert [p.of for p in ran if p.proposer == "replicate"] == [1, 2], "what diverged is not run again"


def test_of_one_point_or_several_objectives_there_is_no_winner_to_confirm(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=1, space=None, seeds=3)
    assert [key(p) for p in run_all(folder, Agenda(folder, job, None))] == [
        (1, "job", 7, None), (2, "replicate", 8, 1), (3, "replicate", 9, 1),
    ]  # fmt: skip
    folder, job = sweep(tmp_path / "other", trials=3, seeds=2, minimize=["loss", "params"])
    ran = run_all(folder, Agenda(folder, job, FakeStudy([0.1, 0.2, 0.3])))
    assert [p.proposer for p in ran] == ["random"] * 3 + ["replicate"] * 3


def test_a_better_point_of_an_extended_sweep_is_confirmed_in_its_turn(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=2, seeds=2, top=1)
    run_all(folder, Agenda(folder, job, FakeStudy([0.5, 0.1])))
    before = len(folder.proposals())
    longer = sweep(tmp_path / "longer", trials=3, seeds=2, top=1)[1]
    values = [0.5, 0.1, *[0.0] * (before - 2), 0.3]
    more = run_all(folder, Agenda(folder, longer, FakeStudy(values)))
    assert [(p.proposer, p.of, p.seed) for p in more] == [
        ("random", None, 7), ("replicate", before + 1, 8), ("confirmation", before + 1, 9),
        ("confirmation", before + 1, 10),
    ]  # fmt: skip


def test_how_many_trials_there_will_be_is_right_from_the_start(tmp_path: Path) -> None:
    folder, job = sweep(tmp_path, trials=4, seeds=3, top=2)
    agenda = Agenda(folder, job, FakeStudy([0.1, 0.2, 0.3, 0.4]))
    total = 4 + 2 * 2 + 3
    for ended in range(total):
        assert agenda.remaining == total - ended
        proposal = agenda.next()
        assert proposal and agenda.remaining == total - ended
        end(folder, agenda, proposal)
    assert agenda.next() is None and agenda.finished


# Kills.


class Killed(Exception):
    pass


def sessions(folder: SweepFolder, job: Job, lanes: int, generator: random.Random, alive: Callable[[], None]) -> None:
    """Run a sweep to its end; `alive` is asked before and after each write, and raises where the driver is killed."""
    agenda = Agenda(folder, job, FakeStudy())
    running: list[Proposal] = []
    while True:
        while len(running) < lanes and (proposal := agenda.next()) is not None:
            alive()
            running.append(proposal)
        if not running:
            assert agenda.finished and agenda.remaining == 0
            return
        ending = running.pop(generator.randrange(len(running)))
        ended = record(ending, "FAILED" if ending.values["cycle.prune.level"] == 0.55 else "COMPLETE")
        alive()
        folder.add_trial(ended)
        alive()
        agenda.ended(ended, [])


def kills_at(moments: Sequence[int]) -> Iterator[Callable[[], None]]:
    """Yield one `alive` a session: it survives so many questions; the last one lives for ever."""
    for moment in moments:
        left = iter(range(moment))

        def alive(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed

        yield alive
    yield lambda: None


def run_killed(tmp_path: Path, moments: Sequence[int], lanes: int, seed: int = 0) -> list[Proposal]:
    folder, job = sweep(tmp_path, trials=6, seeds=3, top=3)
    generator = random.Random(seed)
    for alive in kills_at(moments):
        try:
            sessions(SweepFolder(folder.path), job, lanes, generator, alive)
        except Killed:
            continue
    ended = [json.loads(line)["trial"] for line in (folder.path / "trials.jsonl").read_text().splitlines()]
    assert sorted(ended) == sorted(folder.proposals()) == list(range(1, len(ended) + 1)), "each once, none lost"
    return list(folder.proposals().values())


def test_a_sweep_killed_at_any_one_moment_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    expected = run_killed(tmp_path / "whole", [], lanes=1)
    assert len(expected) == 6 + 3 * 2 + 3
    for moment in range(3 * len(expected)):  # before a trial runs, before its record, and before that is heard of
        found = run_killed(tmp_path / str(moment), [moment], lanes=1)
        assert [(*key(p), p.values) for p in found] == [(*key(p), p.values) for p in expected], moment


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_sweep_killed_again_and_again_runs_each_trial_once(tmp_path: Path, lanes: int) -> None:
    for seed in range(20):
        generator = random.Random(seed)
        moments = [generator.randrange(8) for _ in range(12)]
        found = run_killed(tmp_path / str(seed), moments, lanes, seed)
        kinds = [p.proposer for p in found]
        assert kinds.count("random") == 6 and kinds.count("confirmation") == 3
        replicates = [(json.dumps(p.values), p.seed) for p in found if p.proposer == "replicate"]
        assert len(set(replicates)) == len(replicates) and {seed for _, seed in replicates} <= {8, 9}
