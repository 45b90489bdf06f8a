"""Check what a job names, before the first process starts: the model, the data, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysweep.core.examples import check_enough, load_dataset
from raysweep.core.inference import check_inference
from raysweep.core.networks import check_compiles, check_fit, check_model
from raysweep.errors import ArchiveError
from raysweep.jobfile import Job
from raysweep.plan import Fingerprints, content_key
from raysweep.spec import JobSpec


def preflight(job: Job) -> Fingerprints:
    """Return the fingerprints of a job's model and data; its corpus is tokenized (and cached) on the way.

    Where the job searches over models or corpora, all of them are checked, and each fingerprint is of all.

    Raises:
        ModelError, DataError: what the job names cannot be had, does not suffice, or does not fit together.
    """
    corners = job.space.corner_assignments(job.spec.resolved()) if job.space else ()
    specs = [job.spec, *(job.with_values(values) for _, values in corners)]
    named = {(spec.model, spec.data, spec.training.batch_size, spec.training.compile, spec.cycle.infer): spec
             for spec in specs}  # fmt: skip
    found = list(dict.fromkeys(map(_check, named.values())))
    if len(found) == 1:
        return found[0]
    return Fingerprints(model=content_key([each.model for each in found]), data=content_key([e.data for e in found]))


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
