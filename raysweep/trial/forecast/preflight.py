"""Check what a job names, before the first process starts: the model, the data, and whether they fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raysweep.errors import ArchiveError, DataError, Fault, ModelError, SpecError
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, content_key
from raysweep.job.spec import JobSpec
from raysweep.networks.configuration import is_hub_name
from raysweep.networks.fit import check_compiles, check_fit, check_model
from raysweep.trial.data.corpora import check_there, is_hub_data
from raysweep.trial.data.examples import check_enough, check_kind, load_dataset
from raysweep.trial.forecast.rehearsal import budget_faults
from raysweep.trial.measures.inference import check_inference


def preflight(job: Job) -> Fingerprints:
    """Return the fingerprints of a job's model and data; its corpus is tokenized (and cached) on the way.

    Where the job searches over models or corpora, all of them are checked, and each fingerprint is of all.

    Raises:
        ModelError, DataError: what the job names cannot be had, does not suffice, or does not fit together.
        SpecError: more heads are to go, or to be grown, than the model has, at every point of its space.
    """
    named = {(spec.model, spec.data, spec.training.batch_size, spec.training.compile, spec.cycle.infer): spec
             for spec in _specs(job)}  # fmt: skip
    found = list(dict.fromkeys(map(_check, named.values())))
    faults, _ = budget_faults(job)
    if faults:
        raise SpecError(faults)
    if len(found) == 1:
        return found[0]
    return Fingerprints(model=content_key([each.model for each in found]), data=content_key([e.data for e in found]))


def faults_here(job: Job) -> tuple[list[Fault], list[str]]:
    """Return what is wrong with what a job names, and a note on whatever cannot be told here and now.

    Without a network, and without reading a corpus: what a hub has, and whether a corpus is long enough, is for
    `preflight` to find out.
    """
    named = {(spec.model, spec.data, spec.training.compile): spec for spec in _specs(job)}
    wrong = dict.fromkeys(message for spec in named.values() for message in _wrong_names(spec))
    faults = [Fault(file=job.source, key="", message=message) for message in wrong]
    notes = dict.fromkeys(f"{job.source}: {note}" for spec in named.values() for note in _untold(spec))
    if not faults and not any(is_hub_name(spec.model.name) for spec in named.values()):
        faults, wasted = budget_faults(job)
        return faults, [*notes, *wasted]
    return faults, list(notes)


def _specs(job: Job) -> list[JobSpec]:
    """Return a job as it stands, and with the values of every corner of its space."""
    corners = job.space.corner_assignments(job.spec.resolved()) if job.space else ()
    return [job.spec, *(job.with_values(values) for _, values in corners)]


def _wrong_names(spec: JobSpec) -> Iterator[str]:
    """Yield what is wrong with a model and a corpus, as far as can be told here."""
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
    model, data = spec.model.name, spec.data.name
    if is_hub_name(model):
        way = f"whether it is there, learns from {data!r} and has heads enough, `raysweep plan` finds out."
        yield f"model.name = {model!r} is a name of the hub: {way}"
    if is_hub_data(data):
        yield f"data.name = {data!r} is a name of the hub: whether it can be had, `raysweep plan` finds out."


def check_unchanged(job: Job, about: Mapping[str, Any], sweep: str) -> Fingerprints:
    """Return the fingerprints that a sweep began with, if its model and corpus are still what they were.

    Args:
        about: the sweep's environment.

    Raises:
        ArchiveError: they are not; ModelError, DataError: they cannot be had any more.
    """
    fingerprints = preflight(job)
    if fingerprints.__dict__ != about["fingerprints"]:
        changed = [kind for kind, mark in fingerprints.__dict__.items() if mark != about["fingerprints"][kind]]
        raise ArchiveError(
            f"sweep {sweep!r} cannot be continued: its {' and '.join(changed)} changed since it began. "
            "Start a new sweep, or put back what it began with."
        )
    return fingerprints


def _check(spec: JobSpec) -> Fingerprints:
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
    return Fingerprints(model=model, data=dataset.fingerprint)
