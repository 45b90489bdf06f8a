"""What Ray Tune sees of a trial: a thin client that hands the plan to a lane and passes the results on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.tune

from raysweep.cluster.calls import answer_of, mailbox_of
from raysweep.cluster.lane import Lane, LaneConfig
from raysweep.contracts.events import PhaseFinished, from_json
from raysweep.errors import ClusterError
from raysweep.job.spec import ScaleSpec

BEAT_S = 3.0
"""Seconds between two signs of life."""
RETURN_S = 30.0
"""How long a trial's own workers may take to return."""
POLL_S = 5.0
"""How long one call to the mailbox waits for a trial's next event."""
METRICS = ("phase", "cycle", "loss", "perplexity", "active_heads")
"""Fields of a phase record that Ray Tune gets as a result."""


class TrialClient(ray.tune.Trainable):
    """One Tune iteration a phase. The config names the trial, its plan, the ticket of this start, the mailbox and,
    under `isolation: process`, how to start a worker group for this trial alone. A client that dies is started again by
    Tune with the same config, and reads on."""

    _heart: threading.Thread | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._trial = config["trial"]
        self._taken = 0
        self._lane: Lane | None = None
        self._mailbox = mailbox_of(config["mailbox"])
        lane = config.get("own_lane")
        name = lane and lane["config"]["name"]
        me = ray.get_runtime_context().current_actor
        self._ticket = config["ticket"]
        answer_of(lambda: self._mailbox.submit.remote(self._ticket, config["plan"], name, me))
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="heart", daemon=True)
            self._heart.start()
        if lane is not None:
            # What a client of this trial that died has left.
            placement_group = answer_of(lambda: self._mailbox.placement_of.remote(name))
            if placement_group is not None:
                ray.util.remove_placement_group(placement_group)
            self._lane = Lane(LaneConfig(**lane["config"]), ScaleSpec(**lane["scale"]), Path(lane["storage"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # With reuse_actors, Tune calls this instead of starting a process for the next trial, which takes seconds.
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        # Each call has a deadline: should this process die, its last call does not wait in the mailbox for ever.
        news: list[tuple[int, str]] = []
        while not news:
            news = answer_of(lambda: self._mailbox.trial_events.remote(self._trial, self._taken, POLL_S), POLL_S)
            if not news and self._lane is not None:
                self._look_at(self._lane)
        self._taken, text = news[0]
        event = from_json(text)
        if isinstance(event, PhaseFinished):
            return {name: event.record[name] for name in METRICS}
        if self._lane is not None:
            # Wait until its workers have returned: their processors are meant for the next trial's lane.
            name = self._lane.config.name
            answer_of(lambda: self._mailbox.retire.remote(name))
            self._lane.join(RETURN_S)
        return {"ending": type(event).__name__, "done": True}

    def _look_at(self, lane: Lane) -> None:
        """Raise where the trial's own lane is lost: Tune starts this client again, and with it the lane."""
        lane.join(0.0)
        if answer_of(lambda: self._mailbox.is_silent.remote(lane.config.name)):
            raise ClusterError(f"lane {lane.config.name} was silent for too long")

    def _beat(self) -> None:
        # In a thread: Tune may have this client wait for long between two steps.
        while True:
            self._mailbox.client_beat.remote(self._ticket)
            time.sleep(BEAT_S)
