"""Check what a job names, before the first process starts: the model, the corpus, the tokens."""

from __future__ import annotations

from raysweep.core.data import check_enough, prepare
from raysweep.core.networks import check_model, tokenizer_source
from raysweep.jobfile import Job
from raysweep.plan import Fingerprints


def preflight(job: Job) -> Fingerprints:
    """Return the fingerprints of a job's model and data; its corpus is tokenized (and cached) on the way.

    Raises:
        ModelError, DataError: what the job names cannot be had, or does not suffice.
    """
    spec = job.spec
    model = check_model(spec.model)
    tokenizer, vocab_size = tokenizer_source(spec.model, spec.data)
    tokens = prepare(spec.data, tokenizer=tokenizer, vocab_size=vocab_size)
    check_enough(tokens, spec.data, spec.training.batch_size)
    return Fingerprints(model=model, data=tokens.fingerprint)
