"""Load the subject of stress protocols: a model, and two texts under one tokenizer, checked against the options."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from raysweep.contracts import Family
from raysweep.errors import DataError, ModelError, UsageError
from raysweep.job import registry
from raysweep.job.registry import UnknownNameError, scratch_sizes
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.configuration import task_of
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.science.language_models import load_trained_network, trained_task
from raysweep.science.stress.subject import StressOptions, StressSubject, corpus_of
from raysweep.trial.data.examples import Dataset, build_task, check_enough, load_dataset
from raysweep.trial.runtime import Runtime


def check_question(question: StressOptions) -> None:
    """Check that the pruning strategy exists and takes its options.

    Raises:
        UsageError: it does not.
    """
    try:
        faults = registry.option_faults("prune", question.strategy, question.options)
    except UnknownNameError as error:
        raise UsageError(f"--strategy: {error}") from error
    for option, value, message in faults:
        given = "" if value is None else f" = {value!r}"
        raise UsageError(f"--set {option}{given}: {message}")


def load_subject(name: str, a: DataSpec, b: DataSpec, question: StressOptions, runtime: Runtime) -> StressSubject:
    """Load a model and both texts; `question.baseline` steps are still to be trained.

    A from-scratch size gets a tokenizer trained on A; B is read with the same one.

    Raises:
        UsageError: an option does not fit the model or the strategy.
        ModelError: the model cannot be loaded, or does not predict tokens.
        DataError: a text cannot be loaded, or is too short.
    """
    # Options first: a mistyped strategy should not cost the loading of a model and two texts.
    check_question(question)
    # A from-scratch size knows nothing yet: damage and conflict of random weights would mean nothing.
    scratch = name in scratch_sizes()
    if scratch and not question.baseline:
        raise UsageError(
            f"model {name!r} is a size to train from scratch: it knows nothing yet. Give --baseline STEPS."
        )
    task_name = task_of(ModelSpec(name=name)) if scratch else trained_task(name)
    if registry.load("tasks", task_name).reads != "windows":
        raise ModelError(f"model {name!r} learns {task_name}: it does not predict tokens of a text.")
    spec = ModelSpec(name=name, task=task_name)
    # Both texts under one tokenizer: losses of two vocabularies could not be compared.
    first, second = load_dataset(a, spec), load_dataset(b, spec, learned_from=a if scratch else None)
    for dataset, data in ((first, a), (second, b)):
        check_enough(dataset, data, question.batch_size)
        _check_held_out(dataset, data)
    network, family, head_map = _network(spec, first, a.seq_len, question.seed, scratch)
    task = build_task(spec, first.facts)
    corpora = [
        corpus_of(data.name, dataset.train, dataset.evaluation, data.probe_windows, question, task, runtime)
        for data, dataset in ((a, first), (b, second))
    ]
    subject = StressSubject(
        network=network.to(runtime.device), family=family, head_map=head_map, task=task, a=corpora[0], b=corpora[1],
        question=question, runtime=runtime,
    )  # fmt: skip
    _check_level(subject)
    return subject


def after_baseline(subject: StressSubject) -> StressSubject:
    """Return the subject after `question.baseline` training steps on both texts, mixed.

    Raises:
        DivergedError: the loss or the gradient is not finite.
    """
    steps = subject.question.baseline
    if not steps:
        return subject
    # Equally many windows of either text, so that the longer one is not learned better.
    count = min(len(subject.a.train), len(subject.b.train), steps * subject.question.batch_size)
    state = subject.state()
    subject.train(state, np.concatenate([subject.a.train[:count], subject.b.train[:count]]), "baseline", steps)
    # Weights are copied back into a plain network: the trained one has hooks of its gates.
    network = copy.deepcopy(subject.network)
    network.load_state_dict(state.model.network.state_dict())
    return dataclasses.replace(subject, network=network)


def _network(spec: ModelSpec, data: Dataset, seq_len: int, seed: int, scratch: bool) -> tuple[Any, Family, HeadMap]:
    """Return a network in fp32, its family and its heads: trained, or drawn from a seed."""
    if not scratch:
        network, family, head_map = load_trained_network(spec, data.facts, seq_len)
        return network.float(), family, head_map
    network, family = build_network(spec, data.facts, seq_len=seq_len, seed=seed)
    sites = family.sites(network)
    return network, family, HeadMap.full(len(sites), sites[0].num_heads)


def _check_held_out(dataset: Dataset, data: DataSpec) -> None:
    if len(dataset.evaluation) < 2:
        raise DataError(
            f"text {data.name!r} has {len(dataset.evaluation)} held-out windows of {data.seq_len} tokens; an interval "
            "takes 2. Give a longer text, a smaller --seq-len, or more --eval-tokens."
        )


def _check_level(subject: StressSubject) -> None:
    """Check that `level` removes at least one head, and leaves one in each layer."""
    # The bound holds for the lowest and for the highest heads alike.
    spare = int((subject.head_map.present.sum(1) - 1).clip(0).sum())
    if not 0 < subject.count <= spare:
        raise UsageError(
            f"--level {subject.question.level} of {subject.head_map.active} heads is {subject.count}; between 1 and "
            f"{spare} may go, for every layer keeps one. Give another level."
        )
