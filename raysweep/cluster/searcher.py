"""Ray Tune's searcher: it gets each trial from the agenda, which learns from the records how earlier trials ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from raysweep.records.schema import Proposal
from raysweep.sweep.admission import has_room

Config = dict[str, Any]


class SweepSearcher(Searcher):
    """Gives Tune a trial whenever a lane is free.

    Args:
        propose: returns the next trial; None when there is none now.
        finished: returns whether there will be no more trials.
        start: turns a proposal into the config of a Tune trial.
        waiting: returns how many trials wait without a lane.
        ended: called when a trial's client has returned.
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
        # None makes Tune ask again soon. To propose early would let the sampler know less of the trials before.
        if not has_room(len(self._clients), self._waiting, self._lanes):
            return None
        proposal = self._propose()
        if proposal is None:
            # FINISHED is final for Tune. While a client runs, its trial may still add others, as replicates of it.
            done: str = Searcher.FINISHED
            return done if self._finished() and not self._clients else None
        self._clients[trial_id] = proposal.trial
        return self._start(proposal)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that a client has returned. An error is Ray's and not the trial's, which a resumed sweep runs again."""
        trial = self._clients.pop(trial_id)
        # After an error no event says that the trial is off its lane, so `ended` would wait for ever.
        if not error and result:
            self._ended(trial)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the archive holds everything from the moment it happens."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle."""
        # Tune pickles its searcher for a restore that raysweep never uses, and the callbacks cannot be pickled.
        return {}
