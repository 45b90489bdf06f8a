"""Count the events that are lost or written twice where calls are lost, cancelled, late and repeated, and drivers die.

Workers tell the mailbox events, a driver reads and writes them, both over a network that may lose a call before or
after it was carried out, or carry it out late, when it has been repeated. Drivers die before and after they write, and
the next one reads on from what was written.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reference import figure, write
from raysweep.cluster.delivery import Reader
from raysweep.cluster.mailbox import Mailbox
from raysweep.contracts.events import Warned, to_json
from raysweep.records.jsonlines import JsonLines
from raysweep.strategies.schedulers.none import Rule

EVENTS = 100_000
WORKERS = 8
SEED = 1
FILE = "events.jsonl"
# Shares of calls that are lost on the way there or back, or arrive once more when they have been answered.
LOST, REPEATED = 0.1, 0.1
DIES = 0.005
"""Share of written events with which the driver dies."""
STEPS = 6
"""A call is delayed or cancelled after up to so many turns of the event loop: more than a call has awaits."""
SHORT_S = 0.001


class Died(Exception):
    """The driver's process was killed."""


@dataclass(kw_only=True)
class Network:
    """Carries calls between processes, and harms some."""

    chance: random.Random
    late: set[asyncio.Task[Any]] = field(default_factory=set)
    """Calls that are still on their way, though they were repeated."""

    async def call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Make a call until it has an answer; each time it may be lost, cancelled at any await, or repeated late."""
        while True:
            fate = self.chance.random()
            if fate < LOST:
                await self._cancelled(make)
                continue
            if fate < LOST + REPEATED:
                task = asyncio.create_task(self._delayed(make))
                self.late.add(task)
                task.add_done_callback(self.late.discard)
            await self._turns()
            return await make()

    async def _cancelled(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        task = asyncio.create_task(make())
        await self._turns()
        # Where the call has ended by now, its answer is lost.
        task.cancel()
        await asyncio.wait([task])

    async def _delayed(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        await self._turns()
        await make()

    async def _turns(self) -> None:
        for _ in range(self.chance.randrange(STEPS)):
            await asyncio.sleep(0)


@dataclass(kw_only=True)
class Outcome:
    """What became of the events."""

    lost: int
    twice: int
    drivers: int


async def deliver(events: int, folder: Path, seed: int = SEED) -> Outcome:
    """Deliver events from workers to the records of drivers that die; count those that went wrong."""
    chance = random.Random(seed)
    network, mailbox = Network(chance=chance), Mailbox(max_attempts=3, rule=Rule(), sharing=True, lane_timeout_s=60.0)
    lines = JsonLines(folder, durable=False)

    async def work(worker: int) -> None:
        for number, event in enumerate(range(worker, events, WORKERS), start=1):
            text = to_json(Warned(trial=1, text=str(event)))
            await network.call(partial(mailbox.tell, "lane-0", "g", f"worker {worker}", number, "post", text))

    def put(text: str) -> None:
        fate = chance.random()
        if fate < DIES / 2:
            raise Died
        lines.append(FILE, {"event": text})
        # The event is written, but nobody can say so any more.
        if fate < DIES:
            raise Died

    workers = [asyncio.create_task(work(worker)) for worker in range(WORKERS)]
    written = byte = drivers = 0
    while written < events:
        drivers += 1
        reader: Reader[str] = Reader(write=put, written=written)
        with suppress(Died):
            while reader.written < events:
                reader.take(await network.call(lambda: mailbox.events(reader.written, SHORT_S)))  # noqa: B023
        # All that the next driver knows.
        new, byte = lines.read_since(FILE, byte, dict)
        written += len(new)
    await asyncio.gather(*workers, *network.late)
    found = Counter(line["event"] for line in lines.read(FILE, dict))
    return Outcome(lost=events - len(found), twice=sum(times - 1 for times in found.values()), drivers=drivers)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(deliver(EVENTS, Path(folder)))
    network = f"{LOST:.0%} of calls lost, {REPEATED:.0%} repeated late, {outcome.drivers:,} drivers"
    write(
        "events",
        [
            figure(f"events lost of {EVENTS:,}", [outcome.lost], asked="0", unit="events", baseline=network),
            figure(f"events written twice of {EVENTS:,}", [outcome.twice], asked="0", unit="events", baseline=network),
        ],
    )


if __name__ == "__main__":
    main()
