"""Run the quickstart's trials in the pattern of Ray's documentation, for comparison.

A Tuner over a driver function, which starts a TorchTrainer for each trial (ray.io, "Hyperparameter tuning with Ray
Tune" in the Ray Train user guides); default settings; nothing is shared between trials. The training itself is ours.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def train_on_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch

    from raysweep.job.plan import TrialPlan
    from raysweep.trial.phases import run_trial
    from raysweep.trial.runtime import Runtime
    from raysweep.trial.store.phase_store import PhaseStore

    runtime = Runtime(device=torch.device(ray.train.torch.get_device()))
    folder = runtime.from_rank_0(tempfile.mkdtemp())
    for record in run_trial(TrialPlan.from_json(config["plan"]), runtime, PhaseStore(Path(folder))):
        ray.train.report({"loss": record.loss, "phase": record.phase})


def drive_trial(config: dict[str, Any]) -> None:
    import ray.train
    import ray.tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        train_on_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=config["workers"]),
        run_config=ray.train.RunConfig(
            name=f"trial-{ray.tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def main(plans: list[str], workers: int) -> None:
    """Run the plans one after the other; print the wall time and the final losses."""
    import ray
    import ray.tune

    from raysweep.records.environment import usable_cores

    started = time.perf_counter()
    ray.init("local", num_cpus=usable_cores() + 1, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(drive_trial, {"CPU": 0.01}),
            param_space={"plan": ray.tune.grid_search(plans), "workers": workers, "storage": storage},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=1),
            run_config=ray.tune.RunConfig(storage_path=storage, verbose=0),
        )
        results = tuner.fit()
    assert not results.errors, results.errors
    losses = sorted(result.metrics["loss"] for result in results)
    ray.shutdown()
    print(json.dumps({"seconds": time.perf_counter() - started, "losses": losses}))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    main(given["plans"], given["workers"])
