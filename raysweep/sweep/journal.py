"""`study.journal`: the ended trials of a sweep as a study of Optuna, named "raysweep", for optuna-dashboard.

It is written, never read back to decide anything: the archive is the truth. A trial is one line, written when it has
ended, so that the file never holds a running one.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raysweep.records.schema import TrialRecord
from raysweep.sweep.history import Result

NAME = "raysweep"


class Journal:
    """Appends each trial once, whichever session of the sweep it ends in.

    Args:
        objectives: names of what the job minimizes.
    """

    def __init__(self, path: Path, objectives: tuple[str, ...], distributions: Mapping[str, BaseDistribution]) -> None:
        optuna.logging.set_verbosity(logging.ERROR)
        self._distributions = distributions
        _repair(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        known = [study.study_name for study in storage.get_all_studies()]  # create_study would write a line each time
        self._study = (
            optuna.load_study(study_name=NAME, storage=storage) if NAME in known
            else optuna.create_study(study_name=NAME, storage=storage, directions=["minimize"] * len(objectives))
        )  # fmt: skip
        if not self._study.metric_names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(list(objectives))
        self._written = {trial.user_attrs["trial"] for trial in self._study.get_trials(deepcopy=False)}

    def add(self, result: Result, record: TrialRecord) -> None:
        """Append an ended trial, unless it is there."""
        if record.trial in self._written:
            return
        frozen = result.frozen(
            self._distributions, trial=record.trial, seed=record.seed, status=record.status, proposer=record.proposer
        )
        assert frozen.datetime_complete is not None
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=record.seconds)
        self._study.add_trial(frozen)
        self._written.add(record.trial)


def _repair(path: Path) -> None:
    """Drop what a killed driver left: half a line, and Optuna's lock on the file."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    Path(f"{path}.lock").unlink(missing_ok=True)  # nobody else's: the sweep's own lock is ours
