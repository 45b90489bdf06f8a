"""Ray Tune's searcher: Tune asks, the agenda answers. How a trial ended, the agenda hears from the sweep's records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from raysweep.records.schema import Proposal
from raysweep.sweep.admission import has_room

Config = dict[str, Any]


class SweepSearcher(Searcher):
    """Hands out a trial whenever a lane has nothing to do.

    Args:
        propose: returns the next trial; None when there is none now.
        finished: whether there will be none any more.
        start: turns a proposal into the config of a Tune trial.
        waiting: returns how many trials wait without a lane.
        ended: called when a trial's client is through.
    """

    def __init__(
        self,
        *,
        lanes: int,
        propose: Callable[[], Proposal | None],
        finished: Callable[[], bool],
        start: Callable[[Proposal], Config],
        waiting: Callable[[], int],
        ended: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._lanes = lanes
        self._propose, self._finished, self._start = propose, finished, start
        self._waiting, self._ended = waiting, ended
        self._clients: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Config | str | None:
        if not has_room(len(self._clients), self._waiting, self._lanes):
            return None
        proposal = self._propose()
        if proposal is None:
            done: str = Searcher.FINISHED
            return done if self._finished() and not self._clients else None
        self._clients[trial_id] = proposal.trial
        return self._start(proposal)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note that a client is through. An error is Ray's, not the trial's: a resumed sweep takes it up again."""
        trial = self._clients.pop(trial_id)
        if not error and result:
            self._ended(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the archive holds everything, from the moment it happens."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, as with `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher, for a restore that we never use."""
        return {}
