"""What Ray Tune sees of a trial: a thin client that hands the plan to a lane and passes the results on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray.tune

from raysweep.cluster.calls import answer_of, mailbox_of
from raysweep.cluster.lane import Lane, LaneConfig
from raysweep.contracts.events import PhaseFinished, from_json
from raysweep.job.spec import ScaleSpec

POLL_S = 5.0
"""How long one call to the mailbox waits for a trial's next event."""
METRICS = ("phase", "cycle", "loss", "perplexity", "active_heads")
"""Fields of a phase record that Ray Tune gets as a result."""


class TrialClient(ray.tune.Trainable):
    """One Tune iteration a phase. The config names the trial, its plan, the ticket of this start, the mailbox and,
    under `isolation: process`, how to start a worker group for this trial alone. A client that dies is started again by
    Tune with the same config, and reads on."""

    def setup(self, config: dict[str, Any]) -> None:
        self._trial = config["trial"]
        self._taken = 0
        self._lane: Lane | None = None
        self._mailbox = mailbox_of(config["mailbox"])
        lane = config.get("own_lane")
        name = lane and lane["config"]["name"]
        answer_of(lambda: self._mailbox.submit.remote(config["ticket"], config["plan"], name))
        if lane is not None:
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
        self._taken, text = news[0]
        event = from_json(text)
        if isinstance(event, PhaseFinished):
            return {name: event.record[name] for name in METRICS}
        if self._lane is not None:
            # Wait until its workers have returned: their processors are meant for the next trial's lane.
            name = self._lane.config.name
            answer_of(lambda: self._mailbox.retire.remote(name))
            self._lane.join()
        return {"ending": type(event).__name__, "done": True}
