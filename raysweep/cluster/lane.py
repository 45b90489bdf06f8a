"""A lane: one long-lived Ray Train run whose workers (one DDP process group) run trial after trial.

A Train run of its own for each trial would spend tens of seconds on starting processes and importing torch; on a lane
the next trial begins in less than a tenth of a second.
"""

from __future__ import annotations

import gc
import os
import threading
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raysweep.cluster.mailbox import NAMESPACE
from raysweep.contracts import Decision, Interrupted
from raysweep.contracts.events import LaneStarted, PhaseFinished, TrialEnding, to_json
from raysweep.errors import DiskFullError, TrialError
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import ScaleSpec
from raysweep.sweep.lanes import Assignment

if TYPE_CHECKING:
    from raysweep.trial.runtime import Runtime

COLLECTIVE_TIMEOUT_S = 24 * 3600
"""How long the other ranks wait for rank 0 in a collective: it may take long to write a large checkpoint."""


@dataclass(frozen=True, kw_only=True)
class LaneConfig:
    """What the workers of a lane need to know."""

    name: str
    mailbox: str
    """Name of the mailbox actor."""
    store: str
    """Folder of the phase store."""
    sharing: bool
    """False: each trial has a store of its own, and shares no phase."""


class Lane:
    """Starts a worker group in the background; `join` waits until it has returned.

    It runs in an actor and not in the driver: when the driver is interrupted, none of its threads is inside Ray Train.

    Args:
        max_failures: how many worker groups may be lost before Ray Train gives the lane up.
    """

    def __init__(self, config: LaneConfig, scale: ScaleSpec, storage: Path, max_failures: int) -> None:
        import ray.train
        import ray.train.torch

        self.config = config
        self._trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config=config.__dict__,
            torch_config=ray.train.torch.TorchConfig(
                backend="nccl" if scale.gpus_per_worker else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scale.workers,
                use_gpu=scale.gpus_per_worker > 0,
                resources_per_worker={"CPU": scale.cpus_per_worker}
                | ({"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else {}),
            ),
            run_config=ray.train.RunConfig(
                # Train resumes a run whose name it finds in the storage, so the name holds the session's unique one.
                name=f"{config.mailbox}-{config.name}",
                storage_path=str(storage),
                # Train's default of 0 would end the lane with the first worker that dies.
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
        except Exception as error:
            # Nobody waits for this thread: without this call the sweep would wait for the lane's trial for ever.
            mailbox = ray.get_actor(self.config.mailbox, namespace=NAMESPACE)
            ray.get(mailbox.lane_died.remote(self.config.name, f"lane {self.config.name} was lost: {error}"))


def work(config: dict[str, Any]) -> None:
    """Run trials until the mailbox has no more. This is the function that every worker of a lane executes."""
    # Imported here: the driver and the trial clients load this module, too, and torch takes seconds.
    import ray.train.torch
    import torch
    from torch import distributed

    from raysweep.trial.runtime import Runtime

    lane = LaneConfig(**config)
    mailbox = ray.get_actor(lane.mailbox, namespace=NAMESPACE)
    runtime = Runtime(
        device=torch.device(ray.train.torch.get_device()),
        # ray.get waits until the mailbox has the event, so that events arrive in the order in which they happened.
        emit=lambda event: ray.get(mailbox.post.remote(to_json(event))),
        ask_sweep=lambda question: ray.get(mailbox.ask.remote(to_json(question))),
    )
    # A new name for each start: when Ray starts the group again, the mailbox knows by it that the old one is lost.
    group = runtime.from_rank_0(uuid.uuid4().hex)
    pids: list[int] = [0] * runtime.world_size
    if runtime.world_size > 1:
        distributed.all_gather_object(pids, os.getpid())
    else:
        pids = [os.getpid()]
    if runtime.rank == 0:
        runtime.emit(LaneStarted(lane=lane.name, group=group, pids=pids))
    finished = -1
    while True:
        # Every rank asks for itself: waiting in a broadcast for rank 0 would count against the collectives' timeout.
        assignment: Assignment | None = ray.get(mailbox.next_trial.remote(lane.name, group, finished))
        if assignment is None:
            return
        runtime.assert_equal(assignment.sequence)
        _run(assignment, lane, runtime, mailbox)
        finished = assignment.sequence
        # Models and optimizers refer to each other in circles, which only the collector frees, and CUDA keeps what they
        # held in its own cache: without both, the next trial would find less memory.
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def _run(assignment: Assignment, lane: LaneConfig, runtime: Runtime, mailbox: Any) -> None:
    """Run one trial; rank 0 says how it ended, or hands it back.

    Other exceptions are re-raised: they end the worker, and Ray starts the group again.
    """
    from raysweep.trial.phases import run_trial
    from raysweep.trial.store.phase_store import PhaseStore

    plan = TrialPlan.from_json(assignment.plan)
    folder = Path(lane.store) if lane.sharing else Path(lane.store) / f"trial-{plan.trial}"
    ending = TrialEnding(status="COMPLETE")
    handed_back: Decision | None = None
    try:
        for record in run_trial(plan, runtime, PhaseStore(folder)):
            if runtime.rank == 0:
                runtime.emit(PhaseFinished(trial=plan.trial, record=record.to_dict()))
    # All ranks get the sweep's answer from rank 0, so they are interrupted alike.
    except Interrupted as interrupted:
        if interrupted.decision.action == "stop":
            ending = TrialEnding.of(interrupted)
        else:
            handed_back = interrupted.decision
    # All ranks raise it alike, since it follows from all-reduced numbers.
    except TrialError as error:
        ending = TrialEnding.of(error)
    # Rank 0 writes and tells the others, see Runtime.write. No other trial could write either: the sweep must stop.
    except DiskFullError as error:
        handed_back = Decision(action="leave", reason=str(error))
        if runtime.rank == 0:
            ray.get(mailbox.interrupt.remote(str(error)))
    except Exception:
        ray.get(mailbox.crashed.remote(plan.trial, f"rank {runtime.rank}: {traceback.format_exc()}"))
        raise
    # Only when all ranks are through is the lane free: the next trial's collectives must not mix with this one's.
    runtime.barrier()
    if runtime.rank == 0:
        if handed_back is None:
            ray.get(mailbox.finish.remote(lane.name, assignment.sequence, ending))
        else:
            ray.get(mailbox.release.remote(lane.name, assignment.sequence, handed_back))
