"""The attempts at a trial whose workers get lost: which of them got on, and whether the trial is given up.

A cluster may take a trial's nodes away any number of times, so an attempt that passed a checkpoint or finished a phase
does not count. A trial that loses its workers again and again at the same place is itself at fault.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from raysweep.contracts.events import Event, PhaseFinished, PhaseResumed, StepLogged, TrialEnding

OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What stands in the traceback of a worker, of CUDA, of PyTorch on a CPU or of Python, that had too little memory."""


@dataclass(kw_only=True)
class Attempts:
    """The attempts at one trial in this session."""

    checkpoint_every: int
    """Steps between two checkpoints inside a training phase."""
    number: int = 1
    """Of the present attempt."""
    fruitless: int = 0
    """How many attempts were lost in a row that had not got on."""
    crash: str | None = None
    """Why a worker died in the present attempt. Only the first reason: the death of one worker may kill others."""
    _got_on: bool = False
    _kept: defaultdict[tuple[str, str, int], int] = field(default_factory=lambda: defaultdict(int))
    """The step of the newest checkpoint of each phase, by arm, kind and cycle."""

    def note(self, event: Event) -> None:
        """Take in an event of the trial: it may show that the present attempt has got on."""
        match event:
            case PhaseFinished():
                # A phase that is found in the store was run by an earlier attempt, or by another trial.
                self._got_on |= not event.record.get("reused")
            case StepLogged():
                # A checkpoint is written after its step is logged: only a later step shows that it is there.
                self._keep(event, (int(event.point["step"]) - 1) // self.checkpoint_every * self.checkpoint_every)
            case PhaseResumed():
                # From a checkpoint that an earlier attempt, or a trial before, wrote.
                where = (event.arm, event.phase, event.cycle)
                self._kept[where] = max(self._kept[where], event.step)
            case _:
                # Other events say nothing about how far a trial is.
                pass

    def _keep(self, event: StepLogged, step: int) -> None:
        where = (event.arm, event.phase, event.cycle)
        # Only beyond all earlier attempts: a checkpoint that cannot be read would be passed again and again.
        if step > self._kept[where]:
            self._kept[where], self._got_on = step, True

    def lost(self) -> None:
        """Note that the present attempt lost its workers."""
        self.fruitless = 0 if self._got_on else self.fruitless + 1

    def retry(self) -> None:
        """Begin another attempt."""
        self.number += 1
        self._got_on, self.crash = False, None

    def given_up(self) -> TrialEnding:
        """Return the ending of a trial that is not tried again."""
        reason = self.crash or "its worker group was lost (killed, or the node went away)"
        got_no_further = f"gave up after {self.number} attempts, the last {self.fruitless} without getting any further"
        # A trial that needs more memory than there is does so by its values; any other crash may be the cluster's.
        out_of_memory = any(sign in reason for sign in OUT_OF_MEMORY)
        return TrialEnding(status="FAILED", error=f"{got_no_further}: {reason}", cluster_fault=not out_of_memory)
