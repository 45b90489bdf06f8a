"""What a worker does with the sweep's answers: go on, or give its trial back."""

from __future__ import annotations

from collections.abc import Iterable

from raysweep.contracts import GO, Decision


class Interrupted(Exception):
    """The trial does not go on here; what it has done is in the store. Raised on all ranks alike."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.action}: {decision.reason}")
        self.decision = decision


def obey(decision: Decision) -> None:
    """Go on, or not.

    Raises:
        Interrupted: the decision is another than `go`.
    """
    if decision.action != "go":
        raise Interrupted(decision)


def foremost(decisions: Iterable[Decision]) -> Decision:
    """Return the first decision that is not to go on, if any."""
    return next((decision for decision in decisions if decision.action != "go"), GO)
