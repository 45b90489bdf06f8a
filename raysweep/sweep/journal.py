"""Write `study.journal`: the ended trials of a sweep as an Optuna study named "raysweep", for optuna-dashboard.

Nothing is decided from what the file holds: the archive is the truth. Each trial is one line, written when it has
ended, so that the file never holds a running trial.
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

from raysweep.records.disk import refuse_when_full
from raysweep.records.schema import TrialRecord
from raysweep.sweep.history import Result

NAME = "raysweep"


class Journal:
    """Appends each trial once, over all sessions of a sweep.

    Args:
        objectives: names of what the job minimizes.
    """

    def __init__(self, path: Path, objectives: tuple[str, ...], distributions: Mapping[str, BaseDistribution]) -> None:
        optuna.logging.set_verbosity(logging.ERROR)
        self._distributions, self._path = distributions, path
        _repair(path)
        with refuse_when_full(path):
            self._open(path, objectives)

    def _open(self, path: Path, objectives: tuple[str, ...]) -> None:
        storage = JournalStorage(JournalFileBackend(str(path)))
        # create_study with load_if_exists would append a line in every session.
        known = [study.study_name for study in storage.get_all_studies()]
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
        # optuna-dashboard shows these attributes; by the trial's number, a later session knows what is written.
        frozen = result.frozen(
            self._distributions, trial=record.trial, seed=record.seed, status=record.status, proposer=record.proposer
        )
        # Optuna sets both times to now; the dashboard shows how long a trial took.
        assert frozen.datetime_complete is not None
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=record.seconds)
        with refuse_when_full(self._path):
            self._study.add_trial(frozen)
        self._written.add(record.trial)


def _repair(path: Path) -> None:
    """Remove what a killed driver left: half a line, and Optuna's lock on the file."""
    # Without a newline at its end, the next line would be appended to the half one, and neither could be read.
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    # Optuna would wait for this lock. Its holder is dead: this driver holds the sweep's own lock.
    Path(f"{path}.lock").unlink(missing_ok=True)
