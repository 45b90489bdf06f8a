"""Who has not been heard of for too long. Pure: the mailbox and tests hand in the time."""

from __future__ import annotations

from dataclasses import dataclass, field

LOADING = 4
"""How many times longer a lane may be silent while it loads a model and data, or compiles: there are no steps yet."""
STARTING_S = 600.0
"""How long a lane may take at least to start its workers; a cluster may have to wait for a node."""
NOTICE = 0.2
"""Share of its deadline after which a silence is told of."""
GAP_S = 5.0
"""A longer time between two looks means that the one who looks stood still: nobody else was silent then."""


@dataclass(kw_only=True)
class _Pulse:
    """The last sign of somebody."""

    at: float
    limit_s: float
    noticed: bool = False


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Somebody who has given no sign."""

    name: str
    seconds: float
    overdue: bool
    """Whether it is longer than allowed."""


@dataclass(kw_only=True)
class Heartbeats:
    """The signs of life of those who are expected to give some."""

    timeout_s: float
    """How long somebody at work may be silent."""
    _pulses: dict[str, _Pulse] = field(default_factory=dict)
    _looked: float | None = None

    def beat(self, name: str, now: float, *, loading: bool = False, starting: bool = False) -> bool:
        """Note a sign of somebody; return whether a silence was told of that ends with it.

        Args:
            loading: what follows may take long without a sign; see `LOADING`.
            starting: it is only being started; see `STARTING_S`.
        """
        before = self._pulses.get(name)
        limit_s = self.timeout_s * (LOADING if loading or starting else 1)
        self._pulses[name] = _Pulse(at=now, limit_s=max(limit_s, STARTING_S) if starting else limit_s)
        return before is not None and before.noticed

    def expects(self, name: str) -> bool:
        """Return whether signs of somebody are expected."""
        return name in self._pulses

    def forget(self, name: str) -> None:
        """Expect no more signs of somebody."""
        self._pulses.pop(name, None)

    def look(self, now: float) -> list[Silence]:
        """Return each silence that is new, and each that is longer than allowed. The latter are forgotten."""
        gap = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if gap > GAP_S:
            for pulse in self._pulses.values():
                pulse.at += gap
        found = []
        for name, pulse in list(self._pulses.items()):
            seconds = now - pulse.at
            if seconds > pulse.limit_s:
                self.forget(name)
                found.append(Silence(name=name, seconds=seconds, overdue=True))
            elif seconds > NOTICE * pulse.limit_s and not pulse.noticed:
                pulse.noticed = True
                found.append(Silence(name=name, seconds=seconds, overdue=False))
        return found
