"""Remove checkpoints that nothing needs any more while their sweep runs, as `scale.keep` says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from raysweep.job.jobfile import Job
from raysweep.records.folder import SweepFolder
from raysweep.trial.store.garbage import POLICIES, collect, survey
from raysweep.trial.store.names import MOMENTS, TENSORS

SHARE = 0.02
"""Share of the time that looking for such checkpoints may take."""


class Keeper:
    """Collects the checkpoints of trials that have ended, for the process that drives their sweep.

    Args:
        clock: returns the time in seconds, from any start.
    """

    def __init__(self, folder: SweepFolder, job: Job, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._keep = POLICIES.get(job.spec.scale.keep)
        self._due = clock()
        self._ended = False
        """Whether a trial has ended since the last time."""

    def ended(self) -> None:
        """Collect, now that a trial has ended; later, with another trial, where the last time took long.

        No trial may be proposed meanwhile: it could begin with what is being removed.
        """
        self._ended = True
        if self._clock() >= self._due:
            self.collect()

    def collect(self) -> None:
        """Collect now, if a trial has ended since the last time."""
        if self._keep is None or not self._ended:
            return
        self._ended = False
        began = self._clock()
        found = survey(self._folder, self._keep)
        # Weights and moments alone: unfinished folders and checkpoints inside phases belong to workers that live.
        removable = [checkpoint for checkpoint in found.collected if checkpoint.path.name in (TENSORS, MOMENTS)]
        collect(replace(found, collected=removable))
        self._due = self._clock() + (self._clock() - began) / SHARE
