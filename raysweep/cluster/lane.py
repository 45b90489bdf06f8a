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

from raysweep.cluster.calls import Sender, answer_of, mailbox_of
from raysweep.contracts import Decision, Interrupted
from raysweep.contracts.events import LaneStarted, PhaseFinished, TrialEnding, to_json
from raysweep.errors import DiskFullError, TrialError
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import ScaleSpec

if TYPE_CHECKING:
    from raysweep.sweep.lanes import Assignment
    from raysweep.trial.runtime import Runtime

COLLECTIVE_TIMEOUT_S = 24 * 3600
"""How long the other ranks wait for rank 0 in a collective: it may take long to write a large checkpoint."""
ROUND_S = 10.0
"""How long one call for a trial waits in the mailbox, and the other ranks for its answer."""
MAX_GROUPS = 1000
"""Worker groups that a lane may lose before Ray Train gives it up. The dispatcher counts attempts, of which those that
got on do not count, and Train must not give up before it. This ends a lane whose workers never get as far as to ask."""


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
    """

    def __init__(self, config: LaneConfig, scale: ScaleSpec, storage: Path) -> None:
        import ray.train
        import ray.train.torch

        from raysweep.cluster.trainer import LaneTrainer

        self.config = config
        self._trainer = LaneTrainer(
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
                failure_config=ray.train.FailureConfig(max_failures=MAX_GROUPS),
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
            mailbox = mailbox_of(self.config.mailbox)
            reason = f"lane {self.config.name} was lost: {error}"
            answer_of(lambda: mailbox.lane_died.remote(self.config.name, reason))


def work(config: dict[str, Any]) -> None:
    """Run trials until the mailbox has no more. This is the function that every worker of a lane executes."""
    # Imported here: the driver and the trial clients load this module, too, and torch takes seconds.
    import ray.train.torch
    import torch
    from torch import distributed

    from raysweep.trial.runtime import Runtime

    lane = LaneConfig(**config)
    mailbox = mailbox_of(lane.mailbox)
    # A new name for each start: when Ray starts the group again, the mailbox knows by it that the old one is lost.
    start = uuid.uuid4().hex
    sender = Sender(mailbox, start)
    runtime = Runtime(
        device=torch.device(ray.train.torch.get_device()),
        # It waits until the mailbox has the event, so that events arrive in the order in which they happened.
        emit=lambda event: sender.tell("post", to_json(event)),
        ask_sweep=lambda question: sender.tell("ask", to_json(question)),
    )
    group = runtime.from_rank_0(start)
    pids: list[int] = [0] * runtime.world_size
    if runtime.world_size > 1:
        distributed.all_gather_object(pids, os.getpid())
    else:
        pids = [os.getpid()]
    if runtime.rank == 0:
        runtime.emit(LaneStarted(lane=lane.name, group=group, pids=pids))
    finished = -1

    def ask() -> Any:
        return answer_of(lambda: mailbox.next_trial.remote(lane.name, group, finished, ROUND_S), ROUND_S)

    while True:
        # Rank 0 asks for all, and the others hear at least each `ROUND_S`: far within the collectives' timeout.
        found = runtime.from_rank_0(ask() if runtime.rank == 0 else None)
        if found == "idle":
            continue
        if found == "leave":
            return
        _run(found, lane, runtime, sender)
        finished = found.sequence
        # Models and optimizers refer to each other in circles, which only the collector frees, and CUDA keeps what they
        # held in its own cache: without both, the next trial would find less memory.
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def _run(assignment: Assignment, lane: LaneConfig, runtime: Runtime, sender: Sender) -> None:
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
            sender.tell("interrupt", str(error))
    except Exception:
        sender.tell("crashed", plan.trial, f"rank {runtime.rank}: {traceback.format_exc()}")
        raise
    # Only when all ranks are through is the lane free: the next trial's collectives must not mix with this one's.
    runtime.barrier()
    if runtime.rank == 0:
        if handed_back is None:
            sender.tell("finish", lane.name, assignment.sequence, ending)
        else:
            sender.tell("release", lane.name, assignment.sequence, handed_back)
