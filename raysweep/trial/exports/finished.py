"""Restore a finished trial from its records and the phase store, as its last phase left it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raysweep.contracts import Batch, Family
from raysweep.errors import ArchiveError
from raysweep.job import registry
from raysweep.job.plan import Fingerprints, TrialPlan
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.schema import PhaseRecord
from raysweep.trial.data.examples import Dataset
from raysweep.trial.data.trial_data import trial_data, trial_task
from raysweep.trial.forecast.preflight import check_unchanged
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore

EXPORTED = ("COMPLETE", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A finished trial: its plan and records, and the state that an export is made from."""

    sweep: str
    plan: TrialPlan
    records: list[PhaseRecord]
    """Its phases, in order, up to the one that left `state`."""
    state: TrialState
    family: Family
    data: Dataset

    @property
    def last(self) -> PhaseRecord:
        """The record of the phase that left `state`."""
        return self.records[-1]

    def held_out_batch(self) -> Batch:
        """Return a batch of two held-out examples."""
        return shared_batches(self.data.evaluation[:2], 2, trial_task(self.plan), _runtime())[0]


def restore(folder: SweepFolder, trial: int) -> FinishedTrial:
    """Rebuild a trial as the phase of its result left it, on the CPU.

    Raises:
        ArchiveError: there is no such trial, it has no result, its checkpoints are gone, or its model or data have
            changed since the sweep began.
    """
    records = _records(folder, trial)
    store = PhaseStore(folder.store_of(trial))
    # Before anything is loaded: with a checkpoint gone, the error should come at once.
    lost = store.missing(records[-1].key, moments=False)
    if lost is not None:
        raise ArchiveError(
            f"trial {trial} of {folder.name!r}: the weights of phase {_name_of(lost, records)} ({lost}) are no longer "
            f"in {str(store.folder)!r}: collected by 'raysweep gc', or damaged. Run them again with 'raysweep repair "
            f"{folder.name} {trial}'."
        )
    # A changed corpus would give another tokenizer and other held-out examples than the model was trained with.
    job, about = folder.job(), folder.environment()
    check_unchanged(job, about, folder.name)
    plan = plan_of(job, folder.proposals()[trial], Fingerprints(**about["fingerprints"]))
    data = trial_data(plan)
    state = TrialState.restored(plan, records[-1].key, store, data.facts, _runtime())
    state.model.eval()
    family = registry.build("models", state.model.network.config.model_type)
    return FinishedTrial(sweep=folder.name, plan=plan, records=records, state=state, family=family, data=data)


def _records(folder: SweepFolder, trial: int) -> list[PhaseRecord]:
    """Return the records of a trial's phases, up to the one that is its result.

    Raises:
        ArchiveError: the trial has no result, or its phases have no records.
    """
    ended = folder.trials().get(trial)
    if ended is None:
        known = sorted(number for number, record in folder.trials().items() if record.status in EXPORTED)
        listed = f"Trials to export: {', '.join(map(str, known))}." if known else "None has come to a good end yet."
        state = "has not ended" if trial in folder.proposals() else "does not exist"
        raise ArchiveError(f"trial {trial} of sweep {folder.name!r} {state}. {listed}")
    if ended.status not in EXPORTED:
        raise ArchiveError(f"trial {trial} of sweep {folder.name!r} is {ended.status}, not COMPLETE: {ended.error}")
    found = {record.key: record for record in folder.phases() if record.trial == trial}
    records = [found[key] for key in ended.phases if key in found]
    # The record lists all phases that were planned. A stopped trial has not run the last ones; a complete one has.
    if not records or (ended.status == "COMPLETE" and len(records) != len(ended.phases)):
        raise ArchiveError(f"trial {trial} of sweep {folder.name!r} is {ended.status}, but its phases have no record.")
    # A halted trial was rolled back: its result is an earlier phase, and the ones after it are left out.
    if ended.halted is None:
        return records
    kept = [record.key for record in records].index(ended.halted["kept"])
    return records[: kept + 1]


def _name_of(key: str, records: list[PhaseRecord]) -> str:
    """Return the name of the phase with a key."""
    return next((record.phase for record in records if record.key == key), "unknown")


def _runtime() -> Runtime:
    """Return the runtime of a single process on the CPU: exporting needs no GPU."""
    return Runtime(device=torch.device("cpu"))
