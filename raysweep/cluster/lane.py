"""A lane: one long-lived Ray Train run whose workers (one DDP process group) run trial after trial."""

from __future__ import annotations

import gc
import os
import threading
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from raysweep.cluster.mailbox import NAMESPACE
from raysweep.contracts import Decision
from raysweep.errors import DiskFullError, DivergedError, TrialError
from raysweep.job.spec import ScaleSpec
from raysweep.sweep.dispatcher import Assignment

IDLE_TIMEOUT_S = 24 * 3600
"""How long a collective may wait: rank 0 may write a large checkpoint for long."""


@dataclass(frozen=True, kw_only=True)
class LaneConfig:
    """What starts a lane."""

    name: str
    mailbox: str
    store: str
    """Folder of the phase store."""
    sharing: bool
    """False: each trial has a store of its own, and shares nothing."""


class Lane:
    """Starts a worker group in the background; `join` waits until it has returned.

    Lives in an actor: should the driver be interrupted, no thread of its own is deep inside Ray Train.
    """

    def __init__(self, config: LaneConfig, scale: ScaleSpec, storage: Path, max_failures: int) -> None:
        import ray.train
        import ray.train.torch

        self.config = config
        self._trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config=config.__dict__,
            torch_config=ray.train.torch.TorchConfig(
                backend="nccl" if scale.gpus_per_worker else "gloo", timeout_s=IDLE_TIMEOUT_S
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scale.workers,
                use_gpu=scale.gpus_per_worker > 0,
                resources_per_worker={"CPU": scale.cpus_per_worker}
                | ({"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"{config.mailbox}-{config.name}",
                storage_path=str(storage),
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
            ),
        )
        # In a thread: fit() blocks, and installs a signal handler of its own in the main thread.
        self._thread = threading.Thread(target=self._fit, name=config.name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # whatever ended the run, nobody else will hear of it
            mailbox = ray.get_actor(self.config.mailbox, namespace=NAMESPACE)
            ray.get(mailbox.lane_died.remote(self.config.name, f"lane {self.config.name} was lost: {error}"))


def work(config: dict[str, Any]) -> None:
    """Run trials until the mailbox has no more. This is the function that every worker of a lane executes."""
    import ray.train.torch
    import torch
    from torch import distributed

    from raysweep.trial.runtime import Runtime

    lane = LaneConfig(**config)
    mailbox = ray.get_actor(lane.mailbox, namespace=NAMESPACE)
    runtime = Runtime(
        device=torch.device(ray.train.torch.get_device()),
        emit=lambda event: ray.get(mailbox.post.remote(event)),
        ask_sweep=lambda event: ray.get(mailbox.ask.remote(event)),
    )
    group = runtime.from_rank_0(uuid.uuid4().hex)
    pids: list[int] = [0] * runtime.world_size
    if runtime.world_size > 1:
        distributed.all_gather_object(pids, os.getpid())
    else:
        pids = [os.getpid()]
    if runtime.rank == 0:
        runtime.emit({"type": "group", "lane": lane.name, "group": group, "pids": pids})
    finished = -1
    while True:
        assignment: Assignment | None = ray.get(mailbox.next_trial.remote(lane.name, group, finished))
        if assignment is None:
            return
        runtime.assert_equal(assignment.sequence)
        _run(assignment, lane, runtime, mailbox)
        finished = assignment.sequence
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def _run(assignment: Assignment, lane: LaneConfig, runtime: Any, mailbox: Any) -> None:
    """Run one trial; rank 0 tells how it ended, or hands it back. What is no fault of its plan ends the worker."""
    from raysweep.contracts import Interrupted
    from raysweep.job.plan import TrialPlan
    from raysweep.trial.phases import run_trial
    from raysweep.trial.store.phase_store import PhaseStore

    plan = TrialPlan.from_json(assignment.plan)
    folder = Path(lane.store) if lane.sharing else Path(lane.store) / f"trial-{plan.trial}"
    ending: dict[str, Any] = {"status": "COMPLETE", "error": None}
    handed_back: Decision | None = None
    try:
        for record in run_trial(plan, runtime, PhaseStore(folder)):
            if runtime.rank == 0:
                runtime.emit({"type": "phase", "trial": plan.trial, "record": record.to_dict()})
    except Interrupted as interrupted:  # by the sweep, and so on all ranks alike
        if interrupted.decision.action == "stop":
            ending = {"status": "STOPPED", "stopped": interrupted.decision.reason, "error": None}
        else:
            handed_back = interrupted.decision
    except TrialError as error:  # raised by all ranks alike: it follows from all-reduced numbers
        ending = {"status": "DIVERGED" if isinstance(error, DivergedError) else "FAILED", "error": str(error)}
    except DiskFullError as error:  # on all ranks alike; no other trial could write either
        handed_back = Decision(action="leave", reason=str(error))
        if runtime.rank == 0:
            ray.get(mailbox.interrupt.remote(str(error)))
    except Exception:
        ray.get(mailbox.crashed.remote(plan.trial, f"rank {runtime.rank}: {traceback.format_exc()}"))
        raise
    runtime.barrier()
    if runtime.rank == 0:
        if handed_back is None:
            ray.get(mailbox.finish.remote(lane.name, assignment.sequence, ending))
        else:
            ray.get(mailbox.release.remote(lane.name, assignment.sequence, handed_back))
