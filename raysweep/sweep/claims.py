"""Which phases are done, and which trial runs each phase that is not: equal phases of several trials run once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from raysweep.contracts import GO, Decision


@dataclass(kw_only=True)
class Claims:
    """The claims of trials on phases, by the phases' keys."""

    sharing: bool = True
    """False: every trial runs all of its phases itself, and nobody waits."""
    _done: set[str] = field(default_factory=set)
    """Phases whose outcome is in the store."""
    _holders: dict[str, int] = field(default_factory=dict)
    """Phases that are being run -> the trials that run them."""
    _held: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The other way round."""

    def claim(self, trial: int, key: str) -> Decision:
        """Answer a trial that is about to run a phase: `go`, or `wait` while another trial runs it."""
        # A phase that is done needs no claim: the worker asked just before the outcome was posted, and will find it.
        if not self.sharing or key in self._done:
            return GO
        # A trial that claims again holds the claim already: its worker group died, and the next one repeats the phase.
        holder = self._holders.setdefault(key, trial)
        if holder != trial:
            return Decision(action="wait", reason=f"trial {holder} is running this phase")
        self._held[trial].add(key)
        return GO

    def finish(self, key: str) -> None:
        """Note that the outcome of a phase is in the store."""
        self._done.add(key)
        holder = self._holders.pop(key, None)
        if holder is not None:
            self._held[holder].discard(key)

    def withdraw(self, trial: int) -> set[str]:
        """Give up all claims of a trial, so that other trials may run these phases; return their keys."""
        held = self._held.pop(trial, set())
        for key in held:
            del self._holders[key]
        return held

    def is_done(self, key: str) -> bool:
        return key in self._done

    def is_taken(self, key: str, trial: int) -> bool:
        """Return whether another trial than this one is running a phase."""
        return self._holders.get(key, trial) != trial
