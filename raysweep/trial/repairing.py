"""Run phases of a sweep's trials again on ranks of this machine, without Ray: as many, and with the same threads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

from raysweep.errors import RunError, UsageError
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import ScaleSpec
from raysweep.trial.forecast.calibration import torch_threads
from raysweep.trial.phases import run_again
from raysweep.trial.runtime import Runtime
from raysweep.trial.store.phase_store import PhaseStore

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long the other ranks wait for rank 0, which writes the checkpoints."""


Lost = tuple[TrialPlan, str, Path]
"""A trial's plan, the key of the phase to run again, and the folder of its store."""


def run_lost(lost: Sequence[Lost], scale: ScaleSpec) -> None:
    """Run phases again, on as many ranks as they ran on first: another number would sum in another order.

    Raises:
        UsageError: this machine has fewer GPUs than that.
        RunError: a phase could not be run.
    """
    needed = scale.workers if scale.gpus_per_worker else 0
    found = torch.cuda.device_count()
    if needed > found:
        raise UsageError(
            f"the phases ran on {needed} GPUs, one a worker, and this machine has {found}: their outcomes would not be "
            "the same. Repair the sweep on a machine that has them."
        )
    if scale.workers == 1:
        _run(0, list(lost), scale)
        return
    with tempfile.TemporaryDirectory() as meeting:
        try:
            spawn(_rank, args=(list(lost), scale, meeting), nprocs=scale.workers)
        except ProcessRaisedException as error:
            # The last line of a traceback is the error itself.
            raise RunError(f"a phase could not be run again: {str(error).strip().splitlines()[-1]}") from error


def _rank(rank: int, lost: list[Lost], scale: ScaleSpec, meeting: str) -> None:
    """Join the group of ranks, and run; a process of its own."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "nccl" if scale.gpus_per_worker else "gloo", init_method=f"file://{meeting}/ranks", rank=rank,
        world_size=scale.workers, timeout=COLLECTIVE_TIMEOUT,
    )  # fmt: skip
    try:
        _run(rank, lost, scale)
    finally:
        distributed.destroy_process_group()


def _run(rank: int, lost: list[Lost], scale: ScaleSpec) -> None:
    device = torch.device(f"cuda:{rank}" if scale.gpus_per_worker else "cpu")
    # As many threads as a worker of a lane has: they, too, decide on the order of sums.
    with torch_threads(max(1, int(scale.cpus_per_worker))):
        for plan, key, store in lost:
            run_again(plan, key, Runtime(device=device), PhaseStore(store))
