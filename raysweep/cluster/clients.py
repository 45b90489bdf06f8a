"""The trials' clients as the mailbox knows them: what each is to hear, and whether it still gives signs of life."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raysweep.cluster.delivery import Outbox
from raysweep.sweep.heartbeats import Heartbeats

CLIENT_S = 30.0
"""How long a trial's client may give no sign of life. It gives one every few seconds, whatever it waits for."""


@dataclass(kw_only=True)
class _Start:
    """One start of a trial by the driver."""

    ticket: int
    client: Any
    """Handle of its client's actor."""
    box: Outbox[str] = field(default_factory=Outbox)
    """What the client is to hear."""


class Clients:
    """The latest start of each trial."""

    def __init__(self) -> None:
        self._starts: dict[int, _Start] = {}
        self._beats = Heartbeats(timeout_s=CLIENT_S)

    def started(self, trial: int, ticket: int, client: Any, now: float) -> bool:
        """Note a start; return False for one that is known, whose client was started again."""
        self.beat(ticket, now)
        earlier = self._starts.get(trial)
        if earlier is not None and earlier.ticket == ticket:
            earlier.client = client
            return False
        # A new box: events from before a pause are no news to the client of the resumed trial.
        self._starts[trial] = _Start(ticket=ticket, client=client)
        return True

    def deliver(self, trial: int, event: str) -> None:
        """Put an event into a trial's box; none has one whose trial an earlier session left paused."""
        if trial in self._starts:
            self._starts[trial].box.add(event)

    def box_of(self, trial: int) -> Outbox[str]:
        return self._starts[trial].box

    def handle_of(self, ticket: int) -> Any:
        """Return the handle of the client that started a trial under a ticket; None where it was not given."""
        return next((start.client for start in self._starts.values() if start.ticket == ticket), None)

    def beat(self, ticket: int, now: float) -> None:
        self._beats.beat(str(ticket), now)

    def silent(self, now: float) -> list[int]:
        """Return the tickets of clients that have given no sign of life for too long."""
        return [int(silence.name) for silence in self._beats.look(now) if silence.overdue]
