"""A lane: one long-lived Ray Train run whose workers (one DDP process group) run trial after trial.

A Train run of its own for each trial would spend tens of seconds on starting processes and importing torch; on a lane
the next trial begins in less than a tenth of a second.
"""

from __future__ import annotations

import gc
import math
import os
import threading
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.cluster.calls import Heart, Sender, answer_of, mailbox_of
from raysweep.contracts import Decision, Interrupted
from raysweep.contracts.events import LaneStarted, PhaseFinished, TrialEnding, to_json
from raysweep.errors import ClusterError, DiskFullError, TrialError
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import ScaleSpec
from raysweep.sweep.heartbeats import LOADING

if TYPE_CHECKING:
    from raysweep.sweep.lanes import Assignment
    from raysweep.trial.runtime import Runtime

BEATS = 10
"""Signs of life that a lane gives in the time that it may be silent."""
ROUND_S = 10.0
"""How long one call for a trial waits in the mailbox at most, and the other ranks for its answer."""
ROUNDS = 4
"""Calls for a trial in the time that a lane may be silent."""
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
    timeout_s: float
    """`scale.lane_timeout`."""


class Lane:
    """Starts a worker group in the background; `join` waits until it has returned, and raises what it was lost of.

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
                backend="nccl" if scale.gpus_per_worker else "gloo",
                # A rank waits for the others, and for rank 0 to write. Where that takes longer, the lane is given up.
                timeout_s=math.ceil(2 * LOADING * scale.lane_timeout) + 60,
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scale.workers,
                use_gpu=scale.gpus_per_worker > 0,
                resources_per_worker={"CPU": scale.cpus_per_worker}
                | ({"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else {}),
            ),
            run_config=ray.train.RunConfig(
                # Train resumes a run whose name it finds in the storage, so each start of a lane has its own.
                name=f"{config.mailbox}-{config.name}-{uuid.uuid4().hex[:8]}",
                storage_path=str(storage),
                # Train's default of 0 would end the lane with the first worker that dies.
                failure_config=ray.train.FailureConfig(max_failures=MAX_GROUPS),
            ),
            on_placed=self._placed,
        )
        self._error: Exception | None = None
        # In a thread: fit() blocks, and installs a signal handler of its own in the main thread.
        self._thread = threading.Thread(target=self._fit, name=config.name, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the workers to return; return False where they have not within `timeout_s`.

        Raises:
            ClusterError: Ray Train gave them up.
        """
        self._thread.join(timeout_s)
        if self._error is not None:
            raise ClusterError(f"lane {self.config.name} was lost: {self._error}")
        return not self._thread.is_alive()

    def _placed(self, placement_group: Any) -> None:
        mailbox = mailbox_of(self.config.mailbox)
        answer_of(lambda: mailbox.placed.remote(self.config.name, placement_group))

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        # `join` raises it.
        except Exception as error:
            self._error = error


def work(config: dict[str, Any]) -> None:
    """Run trials until the mailbox has no more. This is the function that every worker of a lane executes."""
    # Imported here: the driver and the trial clients load this module, too, and torch takes seconds.
    import torch

    lane = LaneConfig(**config)
    mailbox = mailbox_of(lane.mailbox)
    runtime, sender = _joined(lane, mailbox)
    round_s = min(ROUND_S, lane.timeout_s / ROUNDS)
    finished = -1

    def ask() -> Any:
        return answer_of(lambda: mailbox.next_trial.remote(lane.name, sender.group, finished, round_s), round_s)

    while True:
        # Rank 0 asks for all, and the others hear in each round: far within the collectives' timeout.
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


def _joined(lane: LaneConfig, mailbox: Any) -> tuple[Runtime, Sender]:
    """Return what this rank runs trials with, after its group has said that it stands."""
    import ray.train.torch
    import torch
    from torch import distributed

    from raysweep.trial.runtime import Runtime, keep_quiet

    # A new name for each start: when Ray starts the group again, the mailbox knows by it that the old one is lost.
    start = uuid.uuid4().hex
    device = torch.device(ray.train.torch.get_device())
    group = Runtime(device=device).from_rank_0(start)
    sender = Sender(mailbox, lane.name, group, start)
    runtime = Runtime(
        device=device,
        # It waits until the mailbox has the event, so that events arrive in the order in which they happened.
        emit=lambda event: sender.tell("post", to_json(event)),
        ask_sweep=lambda question: sender.tell("ask", to_json(question)),
        # Every rank waits for all others in each step, so rank 0 speaks for all.
        beat=Heart(mailbox, lane.name, group, lane.timeout_s / BEATS).beat if group == start else keep_quiet,
    )
    pids = [os.getpid()] * runtime.world_size
    if runtime.world_size > 1:
        distributed.all_gather_object(pids, os.getpid())
    if runtime.rank == 0:
        runtime.emit(LaneStarted(lane=lane.name, group=group, pids=pids))
    return runtime, sender


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
