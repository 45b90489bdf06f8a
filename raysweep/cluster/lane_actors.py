"""Start a sweep's lanes, and start those anew that are lost: killed, given up by Ray Train, or silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray

from raysweep.cluster.post import Post
from raysweep.errors import ClusterError

JOIN_S = 20.0
"""How long lanes may take to return when there is nothing left to run."""


class LaneActors:
    """The actors of the lanes that serve any trial.

    Args:
        make: starts the actor of a lane.
        max_losses: how often a lane may be lost without a worker group between that came up.
    """

    def __init__(
        self, names: Sequence[str], make: Callable[[str], Any], mailbox: Any, post: Post, max_losses: int
    ) -> None:
        self._names, self._make, self._mailbox, self._post = names, make, mailbox, post
        self._max_losses = max_losses
        self._actors: dict[str, Any] = {}
        self._returns: dict[Any, str] = {}
        """For each lane the call that returns when its workers have, and the lane."""
        self._losses: Counter[str] = Counter()
        self._dead: set[str] = set()

    def start(self) -> None:
        if self._names:
            self._post.answer(self._mailbox.expect_lanes.remote(len(self._names)))
        for lane in self._names:
            self._start(lane)

    def came_up(self, lane: str) -> None:
        """Note that a lane has a worker group."""
        self._losses[lane] = 0

    def look(self) -> None:
        """Start each lane anew that was lost.

        Raises:
            ClusterError: no lane is left that could be started.
        """
        if not self._returns:
            return
        returned, _ = ray.wait(list(self._returns), num_returns=len(self._returns), timeout=0)
        for call in returned:
            lane = self._returns[call]
            try:
                ray.get(call)
            except ray.exceptions.RayError as error:
                self.replace(lane, _last_line(error))
            else:
                del self._returns[call]

    def replace(self, lane: str, reason: str) -> None:
        """End what is left of a lane, hand its trial back, and start it anew.

        Raises:
            ClusterError: as `look`.
        """
        if lane not in self._actors:
            return
        # Its controller and its workers end with it; Ray kills those that do not hear of it.
        ray.kill(self._actors.pop(lane))
        self._returns = {call: other for call, other in self._returns.items() if other != lane}
        placement_group = self._post.answer(self._mailbox.placement_of.remote(lane))
        if placement_group is not None:
            ray.util.remove_placement_group(placement_group)
        self._post.answer(self._mailbox.lane_lost.remote(lane))
        self._losses[lane] += 1
        if self._losses[lane] <= self._max_losses:
            self._start(lane)
            return
        self._dead.add(lane)
        if len(self._dead) == len(self._names):
            raise ClusterError(
                f"no lane could be started: {lane} was lost {self._losses[lane]} times, at last because: {reason}"
            )
        self._post.answer(self._mailbox.lane_died.remote(lane, reason))

    def end(self) -> None:
        """Let the lanes return, which they do once no trial waits: no worker is left behind when Ray is left."""
        self._post.answer(self._mailbox.close.remote())
        if self._returns:
            ray.wait(list(self._returns), num_returns=len(self._returns), timeout=JOIN_S)

    def _start(self, lane: str) -> None:
        self._post.answer(self._mailbox.lane_begun.remote(lane))
        self._actors[lane] = self._make(lane)
        self._returns[self._actors[lane].join.remote()] = lane


def _last_line(error: BaseException) -> str:
    # A failed call's message is the trace in the other process, whose last line is the error itself.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
