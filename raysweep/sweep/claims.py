"""Which phases are done, and which trial runs each phase that is not: equal phases of several trials run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raysweep.contracts import GO, Decision
from raysweep.job.plan import PhasePlan


@dataclass(kw_only=True)
class Claims:
    """The claims of trials on phases, by the phases' keys."""

    sharing: bool = True
    """False: every trial runs all of its phases itself, and nobody waits."""
    _done: set[str] = field(default_factory=set)
    """Phases whose outcome is in the store."""
    _holders: dict[str, int] = field(default_factory=dict)
    """Phases that are being run -> the trials that run them."""

    def claim(self, trial: int, key: str) -> Decision:
        """Answer a trial that is about to run a phase: `go`, or `wait` while another trial runs it."""
        # A phase that is done needs no claim: the worker asked just before the outcome was posted, and will find it.
        if not self.sharing or key in self._done:
            return GO
        # A trial that claims again holds the claim already: its worker group died, and the next one repeats the phase.
        holder = self._holders.setdefault(key, trial)
        return GO if holder == trial else Decision(action="wait", reason=f"trial {holder} is running this phase")

    def finish(self, key: str) -> None:
        """Note that the outcome of a phase is in the store."""
        self._done.add(key)
        self._holders.pop(key, None)

    def withdraw(self, trial: int) -> None:
        """Give up all claims of a trial, so that other trials may run these phases."""
        self._holders = {key: holder for key, holder in self._holders.items() if holder != trial}

    def blocker(self, trial: int, phases: Sequence[PhasePlan]) -> PhasePlan | None:
        """Return the phase that a trial needs next, if another trial is running it.

        Args:
            phases: all phases of the trial, in the order in which it runs them.
        """
        if not self.sharing:
            return None
        # The list also holds phases that a halted trial skips, so for such a trial this is a guess: the claim that it
        # makes when it runs decides.
        following = next((phase for phase in phases if phase.key not in self._done), None)
        if following is None or self._holders.get(following.key, trial) == trial:
            return None
        return following
