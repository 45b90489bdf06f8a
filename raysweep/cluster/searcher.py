"""Ray Tune's searcher over an Optuna study in a journal file: proposes trials, and is told how each ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raysweep import registry
from raysweep.archive import Proposal, SweepFolder
from raysweep.jobfile import Job
from raysweep.plan import derived_seed
from raysweep.records import TrialRecord
from raysweep.space import Parameter, Values

Config = dict[str, Any]


class SweepSearcher(Searcher):
    """Proposes first what an interrupted sweep left unfinished, then new trials until the job's number is reached.

    Args:
        start: turns a proposal into the config of a Tune trial; called once a proposal is in the archive.
    """

    def __init__(self, folder: SweepFolder, job: Job, start: Callable[[Proposal], Config]) -> None:
        super().__init__()
        self._folder = folder
        self._job = job
        self._start = start
        known, ended = folder.proposals(), folder.trials()
        self._unfinished = [proposal for trial, proposal in sorted(known.items()) if trial not in ended]
        self._next = max(known, default=0) + 1
        self._running: dict[str, Proposal] = {}
        self._study = _open_study(folder.path / "study.journal") if job.space else None
        if self._study is not None:
            _reconcile(self._study, known, ended)

    @property
    def remaining(self) -> int:
        """Trials still to run."""
        search = self._job.spec.search
        planned = search.trials if search else 1
        return len(self._unfinished) + max(0, planned - self._next + 1)

    def suggest(self, trial_id: str) -> Config:
        if self._unfinished:
            earlier = self._unfinished.pop(0)
            proposal = Proposal(**{**earlier.__dict__, "attempt": earlier.attempt + 1})
        else:
            proposal = self._propose()
        self._folder.add_proposal(proposal)
        self._running[trial_id] = proposal
        return self._start(proposal)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended. An error is Ray's, not the trial's: a resumed sweep takes it up again."""
        proposal = self._running.pop(trial_id)
        if not error and result and self._study is not None and proposal.optuna_number is not None:
            _tell(self._study, proposal.optuna_number, result["status"], result["objective"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal and the archive hold everything, from the moment it happens."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, as with `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher, for a restore that we never use."""
        return {}

    def _propose(self) -> Proposal:
        trial, self._next = self._next, self._next + 1
        search, space = self._job.spec.search, self._job.space
        if search is None or space is None or self._study is None:
            return Proposal(trial=trial, values={}, proposer="job", seed=0, attempt=1)
        # A sampler for each trial, seeded by its number: a resumed sweep draws what an uninterrupted one would have.
        seed = derived_seed(str(self._job.spec.seed), "sampler", trial) % 2**32
        self._study.sampler = registry.build("samplers", search.sampler.name, search.sampler.options).build(seed)
        asked = self._study.ask()
        values: Values = {}
        job = self._job.spec.resolved()
        for parameter in space.parameters:
            if space.active(parameter, values, job):
                values[parameter.path] = _suggest(asked, parameter)
        return Proposal(trial=trial, values=values, proposer=search.sampler.name, seed=0, attempt=1)


def _open_study(path: Path) -> optuna.Study:
    """Open the study, or a new one; drop what a killed driver left: half a line, and Optuna's lock on the file."""
    optuna.logging.set_verbosity(logging.ERROR)
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    Path(f"{path}.lock").unlink(missing_ok=True)  # nobody else's: the sweep's own lock is ours
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(storage=storage, study_name="raysweep", direction="minimize", load_if_exists=True)


def _reconcile(study: optuna.Study, known: Mapping[int, Proposal], ended: Mapping[int, TrialRecord]) -> None:
    """Tell the study what it missed when the driver died: results not told, and asks that became no proposal."""
    trial_of = {proposal.optuna_number: trial for trial, proposal in known.items()}
    for asked in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = trial_of.get(asked.number)
        if trial is None:
            _tell(study, asked.number, "FAILED", None)
        elif trial in ended:
            _tell(study, asked.number, ended[trial].status, ended[trial].objective)


def _tell(study: optuna.Study, number: int, status: str, objective: float | None) -> None:
    """Tell a result, unless a driver already did that died before it could write the record."""
    if status == "COMPLETE":
        study.tell(number, objective, skip_if_finished=True)
    else:
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    name, low, high = parameter.path, parameter.low, parameter.high
    if parameter.form == "choice":
        return trial.suggest_categorical(name, list(parameter.choices))
    if parameter.form == "integer":
        return trial.suggest_int(name, int(low), int(high), step=int(parameter.step or 1))
    if parameter.form == "log_uniform":
        return trial.suggest_float(name, low, high, log=True)
    value = trial.suggest_float(name, low, high, step=parameter.step)
    return round(value, 12) if parameter.step else value  # 0.30000000000000004 would be another phase than 0.3
