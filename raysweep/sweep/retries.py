"""What the loss of a trial's workers cost it: how far a training phase had come, and from where it went on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Retry

Where = tuple[str, str, int]
"""Arm, phase and cycle."""


@dataclass(frozen=True, kw_only=True)
class _Loss:
    attempt: int
    where: Where
    reached: int


class RetryLog:
    """Follows the events of a running sweep; adds a line to its archive once a lost trial goes on.

    Args:
        interval: steps between two checkpoints inside a phase.
    """

    def __init__(self, folder: SweepFolder, interval: int) -> None:
        self._folder, self._interval = folder, interval
        self._reached: dict[int, tuple[Where, int]] = {}
        """Of each trial, the running training phase and its last logged step."""
        self._lost: dict[int, _Loss] = {}

    def note(self, event: Mapping[str, Any]) -> None:
        """Take in one event; those that say nothing of a trial's way are passed over."""
        follow = getattr(self, f"_on_{event['type']}", None)
        if follow is not None:
            follow(event["trial"], event)

    def _on_progress(self, trial: int, event: Mapping[str, Any]) -> None:
        self._goes_on(trial, _where(event), step=0)
        self._reached[trial] = (_where(event), int(event["point"]["step"]))

    def _on_resumed(self, trial: int, event: Mapping[str, Any]) -> None:
        self._goes_on(trial, _where(event), step=event["step"])

    def _on_phase(self, trial: int, event: Mapping[str, Any]) -> None:
        lost = self._lost.get(trial)
        if lost is None or lost.where == _where(event["record"]):
            self._goes_on(trial)
            self._reached.pop(trial, None)

    def _on_retry(self, trial: int, event: Mapping[str, Any]) -> None:
        self._goes_on(trial)  # lost once more before it went on: what it had reached is still to be made up for
        where, reached = self._reached.get(trial, (("", "", 0), 0))
        self._lost[trial] = _Loss(attempt=event["attempt"], where=where, reached=reached)
        if not reached:
            self._goes_on(trial)

    def _on_final(self, trial: int, event: Mapping[str, Any]) -> None:
        self._goes_on(trial)
        self._reached.pop(trial, None)

    def _on_left(self, trial: int, event: Mapping[str, Any]) -> None:
        self._on_final(trial, event)

    def _goes_on(self, trial: int, where: Where | None = None, step: int = 0) -> None:
        """Settle a loss; anywhere but in the phase that was lost, nothing of it had to be done again."""
        lost = self._lost.pop(trial, None)
        if lost is None:
            return
        again = where is not None and where == lost.where
        self._folder.add_retry(
            Retry(
                trial=trial,
                attempt=lost.attempt,
                phase=lost.where[1],
                cycle=lost.where[2],
                reached=lost.reached,
                resumed_at=min(step, lost.reached) if again else lost.reached,
                interval=self._interval,
            )
        )


def _where(about: Mapping[str, Any]) -> Where:
    return about["arm"], about["phase"], about["cycle"]
