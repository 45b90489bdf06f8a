"""The group of ranks that a phase runs in: all that the trial knows of distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from raysweep.contracts import GO, Decision
from raysweep.contracts.events import Event, Question
from raysweep.errors import DiskFullError


def ignore_event(event: Event) -> None:
    """Drop an event: a trial outside a sweep."""


def go_on(question: Question) -> Decision:
    """Answer every question with `go`: a trial outside a sweep."""
    return GO


def keep_quiet() -> None:
    """Give no sign of life: a trial outside a sweep."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One rank of a process group; without a group, the only one."""

    device: torch.device
    emit: Callable[[Event], None] = ignore_event
    """Hands an event that needs no answer to the sweep; called on rank 0."""
    ask_sweep: Callable[[Question], Decision] = go_on
    """Hands a question to the sweep and returns the answer; called on rank 0. All ranks act on the answer."""
    beat: Callable[[], None] = keep_quiet
    """Tells the sweep that the trial gets on. Called on all ranks in each step, with each batch of an evaluation or a
    probe, and when a checkpoint is written; cheap enough for that."""

    @property
    def rank(self) -> int:
        return distributed.get_rank() if distributed.is_initialized() else 0

    @property
    def world_size(self) -> int:
        return distributed.get_world_size() if distributed.is_initialized() else 1

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks."""
        if self.world_size > 1:
            # The collective adds in place; the caller keeps its own tensor.
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return every rank's tensor, stacked in the order of ranks."""
        # A sum with zeros is exact, and the same collective for gloo and NCCL.
        rows = tensor.new_zeros(self.world_size, *tensor.shape)
        rows[self.rank] = tensor
        return self.all_reduce(rows)

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def ask(self, question: Question) -> Decision:
        """Return the sweep's answer to a question, on every rank."""
        # Rank 0 alone asks: two ranks that asked for themselves could get different answers, and part.
        answer: Decision = self.from_rank_0(self.ask_sweep(question) if self.rank == 0 else None)
        return answer

    def assert_equal(self, value: Any) -> None:
        """Check that every rank came to rank 0's value: a decision must never differ between ranks."""
        mine = repr(value)
        theirs = self.from_rank_0(mine)
        assert mine == theirs, f"rank {self.rank} decided {mine}, rank 0 {theirs}"

    def barrier(self) -> None:
        if self.world_size > 1:
            distributed.barrier()

    def write(self, action: Callable[[], None]) -> None:
        """Let rank 0 write what all ranks hold; the others wait.

        Raises:
            DiskFullError: on all ranks alike, so that none waits for one that is gone.
        """
        full: str | None = None
        if self.rank == 0:
            try:
                action()
            except DiskFullError as error:
                full = str(error)
        full = self.from_rank_0(full)
        self.beat()
        if full is not None:
            raise DiskFullError(full)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module, its gradients averaged over ranks."""
        if self.world_size == 1:
            return module
        # Buffers need no broadcast: they follow from decisions that all ranks make alike. Gradients that are views of
        # DDP's buckets save the memory of a second copy.
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def without_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Skip the averaging, for all but the last pass of an accumulated step."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Draw what modules draw, such as dropout, from a seed; leave the global generators as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Return bf16 autocast where asked, or where `auto` finds a device that has it."""
        has_bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        enabled = precision == "bf16" or (precision == "auto" and has_bf16)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
