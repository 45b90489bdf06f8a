"""What Ray Tune sees of a trial: a thin client that hands the plan to a lane and passes the results on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import ray.tune

from raysweep.cluster.lane import Lane, LaneConfig
from raysweep.cluster.mailbox import NAMESPACE
from raysweep.contracts.events import PhaseFinished, from_json
from raysweep.job.spec import ScaleSpec

POLL_S = 5.0
"""How long one call to the mailbox waits for a trial's next event."""
METRICS = ("phase", "cycle", "loss", "perplexity", "active_heads")
"""Fields of a phase record that Ray Tune gets as a result."""


class TrialClient(ray.tune.Trainable):
    """One Tune iteration a phase. The config names the trial, its plan, the mailbox and, under
    `isolation: process`, how to start a worker group for this trial alone."""

    def setup(self, config: dict[str, Any]) -> None:
        self._trial = config["trial"]
        self._lane: Lane | None = None
        self._mailbox = ray.get_actor(config["mailbox"], namespace=NAMESPACE)
        lane = config.get("own_lane")
        ray.get(self._mailbox.submit.remote(config["plan"], lane and lane["config"]["name"]))
        if lane is not None:
            self._lane = Lane(
                LaneConfig(**lane["config"]),
                ScaleSpec(**lane["scale"]),
                Path(lane["storage"]),
                max_failures=lane["max_failures"],
            )

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # With reuse_actors, Tune calls this instead of starting a process for the next trial, which takes seconds.
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        # Each call has a deadline: should this process die, its last call does not wait in the mailbox for ever.
        text: str | None = None
        while text is None:
            text = ray.get(self._mailbox.trial_event.remote(self._trial, POLL_S))
        event = from_json(text)
        if isinstance(event, PhaseFinished):
            return {name: event.record[name] for name in METRICS}
        if self._lane is not None:
            # Wait until its workers have returned: their processors are meant for the next trial's lane.
            ray.get(self._mailbox.retire.remote(self._lane.config.name))
            self._lane.join()
        return {"ending": type(event).__name__, "done": True}
