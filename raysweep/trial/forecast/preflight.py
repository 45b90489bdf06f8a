"""Check the model and the data that a job names, and that they fit together, before the first worker starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.errors import ArchiveError, DataError, Fault, ModelError, SpecError
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, content_key
from raysweep.job.spec import JobSpec
from raysweep.networks.configuration import is_hub_name
from raysweep.networks.fit import check_compiles, check_fit, check_model
from raysweep.trial.data.corpora import check_there, is_hub_data
from raysweep.trial.data.examples import check_enough, check_kind, describe, load_dataset
from raysweep.trial.forecast.rehearsal import budget_faults
from raysweep.trial.measures.inference import check_inference


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A job whose model and data were found to be there and to fit."""

    fingerprints: Fingerprints
    data: dict[str, Any]
    """What is read of the corpus of the job as it is written; see `describe`."""


def preflight(job: Job) -> Fingerprints:
    """Return the fingerprints of a job's model and data, after the checks of `check`."""
    return check(job).fingerprints


def check(job: Job) -> Checked:
    """Check a job's model and data, before anything is started; the corpus is tokenized, and cached, for it.

    If the job searches over models or corpora, all of them are checked, and each fingerprint is of all.

    Raises:
        ModelError, DataError: the model or the corpus cannot be loaded, is too small, or they do not fit together.
        SpecError: at every point of the space, more heads are to be pruned or grown than the model allows.
    """
    # A dictionary by what the checks read: points of the space that differ in other settings are checked once.
    named = {(spec.model, spec.data, spec.training.batch_size, spec.training.compile, spec.cycle.infer): spec
             for spec in _specs(job)}  # fmt: skip
    # The job as it is written comes first.
    checked = list(map(_check, named.values()))
    found = list(dict.fromkeys(each.fingerprints for each in checked))
    # Counts of heads last: they need models that can be built.
    faults, _ = budget_faults(job)
    if faults:
        raise SpecError(faults)
    whole = found[0]
    if len(found) > 1:
        whole = Fingerprints(
            model=content_key([each.model for each in found]), data=content_key([each.data for each in found])
        )
    return Checked(fingerprints=whole, data=checked[0].data)


def faults_here(job: Job) -> tuple[list[Fault], list[str]]:
    """Return faults of a job's model and data, and notes on what cannot be checked on this machine.

    It uses no network and reads no corpus: whether the hub has a model or a corpus, and whether a corpus is long
    enough, is checked by `preflight`.
    """
    # Messages are kept in order, each once: several points of a space often have the same fault.
    named = {(spec.model, spec.data, spec.training.compile): spec for spec in _specs(job)}
    wrong = dict.fromkeys(message for spec in named.values() for message in _wrong_names(spec))
    faults = [Fault(file=job.source, key="", message=message) for message in wrong]
    notes = dict.fromkeys(f"{job.source}: {note}" for spec in named.values() for note in _untold(spec))
    # Heads can only be counted if the configuration of every model is on this machine.
    if not faults and not any(is_hub_name(spec.model.name) for spec in named.values()):
        faults, wasted = budget_faults(job)
        return faults, [*notes, *wasted]
    return faults, list(notes)


def _specs(job: Job) -> list[JobSpec]:
    """Return a job as it is written, and with the values of every corner of its space."""
    corners = job.space.corner_assignments(job.spec.resolved()) if job.space else ()
    return [job.spec, *(job.with_values(values) for _, values in corners)]


def _wrong_names(spec: JobSpec) -> Iterator[str]:
    """Yield what is wrong with a model and a corpus, as far as this machine can tell."""
    # Each check runs by itself, so that one message does not hide the next.
    checks: list[Callable[[], object]] = [lambda: check_there(spec.data.name)]
    if not is_hub_name(spec.model.name):
        checks += [
            lambda: check_model(spec.model, seq_len=spec.data.seq_len),
            lambda: check_kind(spec.data, spec.model),
        ]
        if spec.training.compile:
            checks.append(lambda: check_compiles(spec.model, seq_len=spec.data.seq_len))
    for check in checks:
        try:
            check()
        except (ModelError, DataError) as error:
            yield str(error)


def _untold(spec: JobSpec) -> Iterator[str]:
    """Yield a note on each name of the hub, which is not looked up here."""
    model, data = spec.model.name, spec.data.name
    if is_hub_name(model):
        way = f"`raysweep plan` checks whether it exists, learns from {data!r} and has enough heads."
        yield f"model.name = {model!r} is a name of the hub: {way}"
    if is_hub_data(data):
        yield f"data.name = {data!r} is a name of the hub: `raysweep plan` checks whether it can be loaded."


def check_unchanged(job: Job, about: Mapping[str, Any], sweep: str) -> Fingerprints:
    """Return the fingerprints that a sweep began with, if its model and corpus have not changed since.

    Args:
        about: the sweep's environment, as env.json holds it.

    Raises:
        ArchiveError: they have changed.
        ModelError, DataError: they can no longer be loaded.
    """
    # The whole check again, not the hashes alone: a folder may have gone, or a hub's corpus may have changed.
    fingerprints = preflight(job)
    if fingerprints.__dict__ != about["fingerprints"]:
        changed = [kind for kind, mark in fingerprints.__dict__.items() if mark != about["fingerprints"][kind]]
        raise ArchiveError(
            f"sweep {sweep!r} cannot be continued: its {' and '.join(changed)} changed since it began. "
            "Start a new sweep, or put back what it began with."
        )
    return fingerprints


def _check(spec: JobSpec) -> Checked:
    """Check the model and the data of one point of the space."""
    # The cheap checks come first: a wrong model name should not wait until a corpus is tokenized.
    model = check_model(spec.model, seq_len=spec.data.seq_len)
    if spec.training.compile:
        check_compiles(spec.model, seq_len=spec.data.seq_len)
    dataset = load_dataset(spec.data, spec.model)
    check_fit(spec.model, dataset.facts, seq_len=spec.data.seq_len)
    check_enough(dataset, spec.data, spec.training.batch_size)
    if spec.cycle.infer is not None:
        check_inference(
            spec.cycle.infer, spec.model, seq_len=spec.data.seq_len, examples=len(dataset.evaluation)
        )  # fmt: skip
    return Checked(fingerprints=Fingerprints(model=model, data=dataset.fingerprint), data=describe(dataset))
