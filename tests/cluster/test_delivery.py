"""Whatever call is lost, cancelled, late or repeated, and whichever driver dies: each event is written once."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from benchmarks.events import deliver
from raysweep.cluster.delivery import Inbox, Outbox, Reader
from raysweep.cluster.mailbox import CALLS
from raysweep.errors import SpecError
from raysweep.job.jobfile import load_job
from raysweep.job.spec import MAX_LANES
from raysweep.sweep.admission import IN_HAND

TURNS = 8


@pytest.mark.parametrize("seed", range(3))
def test_no_event_is_lost_or_written_twice(seed: int, tmp_path: Path) -> None:
    outcome = asyncio.run(deliver(400, tmp_path, seed))
    assert (outcome.lost, outcome.twice) == (0, 0)
    assert outcome.drivers > 1, "shows too little"


def test_a_reader_cancelled_at_any_await_takes_nothing_away() -> None:
    async def run(added: int, cancelled: int) -> None:
        box: Outbox[str] = Outbox()
        reading = asyncio.create_task(box.after(0, 0.0005))
        for turn in range(TURNS):
            if turn == added:
                box.add("x")
            if turn == cancelled:
                reading.cancel()
            await asyncio.sleep(0.0001)
        assert await box.after(0, 1.0) == [(1, "x")]
        assert await box.after(1, 0.0) == []

    async def every() -> None:
        await asyncio.gather(*(run(*moments) for moments in itertools.product(range(TURNS), repeat=2)))

    asyncio.run(every())


def test_what_comes_between_the_timer_and_the_answer_is_in_the_answer_or_in_the_next_one() -> None:
    """The old mailbox answered its reader with nothing here, and then cleared its box."""

    async def run() -> list[int]:
        box: Outbox[int] = Outbox()
        got: list[int] = []
        reader = Reader(write=got.append)

        async def post() -> None:
            for number in range(200):
                await asyncio.sleep(0.001 if number % 3 else 0.0021)
                box.add(number)

        posting = asyncio.create_task(post())
        while len(got) < 200:
            reader.take(await box.after(reader.written, 0.001))
        await posting
        return got

    assert asyncio.run(run()) == list(range(200))


def test_a_reader_passes_over_what_it_has_written() -> None:
    got: list[str] = []
    reader = Reader(write=got.append, written=2)
    reader.take([(1, "a"), (2, "b"), (3, "c")])
    reader.take([(2, "b"), (3, "c"), (4, "d")])
    assert got == ["c", "d"]


def test_what_cannot_be_written_is_not_acknowledged() -> None:
    def refuse(item: str) -> None:
        if item == "b":
            raise OSError

    reader = Reader(write=refuse)
    with pytest.raises(OSError):
        reader.take([(1, "a"), (2, "b"), (3, "c")])
    assert reader.written == 1


def test_an_act_that_fails_may_be_told_again() -> None:
    inbox, answers = Inbox(), iter([None, "done"])

    def act() -> str:
        answer = next(answers)
        if answer is None:
            raise KeyError
        return answer

    with pytest.raises(KeyError):
        inbox.take("s", 1, act)
    assert [inbox.take("s", 1, act), inbox.take("s", 1, act)] == ["done", "done"]


def test_more_lanes_than_the_mailbox_serves_are_refused() -> None:
    with pytest.raises(SpecError, match=r"scale\.lanes"):
        load_job("jobs/quickstart.yaml", [f"scale.lanes={MAX_LANES + 1}"])


def test_the_mailbox_takes_more_calls_than_all_lanes_and_clients_can_keep_waiting() -> None:
    assert CALLS > MAX_LANES * (1 + IN_HAND) + 1
