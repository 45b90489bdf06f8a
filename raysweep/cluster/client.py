"""What Ray Tune sees of a trial: a thin client that hands its plan to a lane and passes the results on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import ray.tune

from raysweep.cluster.lane import Lane, LaneConfig
from raysweep.cluster.mailbox import NAMESPACE
from raysweep.job.spec import ScaleSpec

POLL_S = 5.0


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
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        event: dict[str, Any] | None = None
        while event is None:
            event = ray.get(self._mailbox.trial_event.remote(self._trial, POLL_S))
        if event["type"] == "phase":
            record = event["record"]
            return {name: record[name] for name in ("phase", "cycle", "loss", "perplexity", "active_heads")}
        if self._lane is not None:
            ray.get(self._mailbox.retire.remote(self._lane.config.name))
            self._lane.join()
        return {"ending": event["type"], "done": True}
