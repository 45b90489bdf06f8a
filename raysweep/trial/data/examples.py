"""Load the examples of a corpus in the form that a task reads, with the facts that the task needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from raysweep.contracts import Examples, Facts, Task
from raysweep.errors import DataError
from raysweep.job import registry
from raysweep.job.names import DIGITS, EMBEDDED, HUB
from raysweep.job.plan import content_key
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.configuration import task_of
from raysweep.trial.data.corpora import check_there
from raysweep.trial.data.images import image_samples, load_images
from raysweep.trial.data.labelled import no_sentences
from raysweep.trial.data.sentences import prepare_sentences
from raysweep.trial.data.splits import Corpus
from raysweep.trial.data.tokenizers import tokenizer_source
from raysweep.trial.data.tokens import TokenStore, prepare, windows_of


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Examples to train on, to choose by and to test on, one a row."""

    train: Examples
    evaluation: Examples
    """The held-out examples of every evaluation, from the split that a sweep chooses by."""
    facts: Facts
    samples: Corpus[str]
    """Where each split came from, and how it begins."""
    test: Examples | None = None
    """The examples of the test split; None where the corpus has none."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, in the order of their numbers; None for text without labels."""
    fingerprint: str
    """Hash of the content and the tokenizer; part of every phase key."""
    content_sha256: str
    """Hash of the content alone."""
    tokenizer: Callable[[], Any] | None = None
    """Loads the tokenizer; None for images."""


def load_dataset(data: DataSpec, model: ModelSpec, learned_from: DataSpec | None = None) -> Dataset:
    """Return the examples that a model learns from; every process of a node may call this at once.

    Args:
        learned_from: the corpus that a tokenizer is trained on, so that two corpora share one; see `prepare`.

    Raises:
        DataError: there is no such corpus, or it does not suit the model's task.
        ModelError: there is no such model.
    """
    check_kind(data, model)
    name = task_of(model)
    task = registry.load("tasks", name)
    # Only text windows can share the tokenizer of another corpus.
    load: dict[str, Callable[..., Dataset]] = {
        "windows": partial(_windows, learned_from=learned_from), "sentences": _sentences, "images": _images
    }  # fmt: skip
    dataset = load[task.reads](data, model, task)
    # Only after loading: which special tokens there are is known once the tokenizer is.
    for fact in task.needs:
        if getattr(dataset.facts, fact) is None:
            what = fact.replace("_", " ")
            raise DataError(
                f"model.task = {name!r} needs a {what}, and the tokenizer {data.tokenizer or model.name!r} has none. "
                "Name another one with data.tokenizer, or another model.task."
            )
    return dataset


def check_kind(data: DataSpec, model: ModelSpec) -> None:
    """Check that a corpus is of the kind that a model learns from, as far as the names tell, without reading it.

    Raises:
        DataError: it is of another kind, or its path does not exist.
        ModelError: there is no such model.
    """
    name = task_of(model)
    task = registry.load("tasks", name)
    # There is one data set of images, so every other name is that of a text.
    if data.name == DIGITS and task.reads != "images":
        raise DataError(
            f"data.name = {DIGITS!r} holds images, but model.name = {model.name!r} learns {name} from text. "
            "Give a text, or a model that learns image_classification (`raysweep list models`)."
        )
    if data.name != DIGITS and task.reads == "images":
        raise DataError(
            f"data.name = {data.name!r} holds no images. Give {DIGITS!r}, or choose another model.task than {name}, "
            f"which model.name = {model.name!r} is to learn."
        )
    if data.masking is not None and "mask_token" not in task.needs:
        raise DataError(
            f"data.masking = {data.masking!r}: model.name = {model.name!r} learns {name}, which hides no tokens. "
            "Remove data.masking, or choose a model that learns masked_lm."
        )
    if task.reads == "sentences" and data.name in (EMBEDDED, *HUB):
        raise DataError(no_sentences(data.name))
    check_there(data.name)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return what is read of a corpus, as JSON values: classes, and of each split its rows, files and beginning."""
    rows = {"train": dataset.train, "choose": dataset.evaluation, "test": dataset.test}
    return {
        "classes": None if dataset.classes is None else list(dataset.classes),
        "splits": {
            name: {
                "rows": 0 if examples is None else len(examples),
                "files": list(sample.files) if sample else [],
                "origin": sample.origin if sample else "the corpus has none",
                "repeated": sample.repeated if sample else 0,
                "sample": sample.content if sample else "",
            }
            for name, examples in rows.items()
            for sample in [dataset.samples.named().get(name)]
        },
        "left_out": list(dataset.samples.left_out),
    }


def build_task(model: ModelSpec, facts: Facts) -> Task:
    """Return the task of a model, with the facts about its data."""
    return registry.load("tasks", task_of(model))(facts=facts)


def check_enough(dataset: Dataset, data: DataSpec, batch_size: int) -> None:
    """Check that the training split has enough examples for one batch and for the probe.

    Raises:
        DataError: it has fewer.
    """
    # With fewer, one batch would hold a window twice, or the probe would be smaller than the job says.
    count = len(dataset.train)
    for key, needed in (("training.batch_size", batch_size), ("data.probe_windows", data.probe_windows)):
        if count < needed:
            raise DataError(
                f"data.name = {data.name!r} is too short: {count} training examples at data.seq_len = {data.seq_len}, "
                f"but {key} = {needed}. Give more data, or lower one of them."
            )


def _windows(data: DataSpec, model: ModelSpec, task: type[Task], learned_from: DataSpec | None) -> Dataset:
    """Load a text as windows of tokens."""
    tokenizer, vocab_size = tokenizer_source(model, data)
    store: TokenStore = prepare(
        data, tokenizer=tokenizer, vocab_size=vocab_size, special_tokens=not task.causal, learned_from=learned_from
    )  # fmt: skip
    # The held-out text is cut to `data.eval_tokens` first: every evaluation, in training and after it, uses all of the
    # windows that are left.
    windows = {
        "train": windows_of(store.train, data.seq_len),
        "choose": windows_of(store.evaluation[: data.eval_tokens], data.seq_len),
    }
    if store.test is not None:
        windows["test"] = windows_of(store.test, data.seq_len)
    if not task.causal:
        windows = {split: _with_text(found, store.facts, data, split) for split, found in windows.items()}
    return Dataset(
        train=windows["train"],
        evaluation=windows["choose"],
        test=windows.get("test"),
        samples=store.samples,
        facts=replace(store.facts, masking=data.masking or store.facts.masking),
        fingerprint=store.fingerprint,
        content_sha256=store.text_sha256,
        tokenizer=store.tokenizer,
    )


def _with_text(windows: Examples, facts: Facts, data: DataSpec, split: str) -> Examples:
    """Return the windows with at least one token that can be hidden, without which a window has no loss.

    Raises:
        DataError: there is none.
    """
    has_text = (~np.isin(windows, facts.special_tokens)).any(1)
    if not has_text.any():
        raise DataError(
            f"data.name = {data.name!r}: its {split} split holds special or unknown tokens alone, so that there is "
            "nothing to predict. Give a text that the tokenizer knows, or name another one with data.tokenizer."
        )
    # Selecting copies the windows into memory; most corpora have none to leave out and stay mapped from the disk.
    return windows if has_text.all() else windows[has_text]


def _sentences(data: DataSpec, model: ModelSpec, task: type[Task]) -> Dataset:
    """Load a table of labelled sentences."""
    tokenizer, vocab_size = tokenizer_source(model, data)
    store = prepare_sentences(data, tokenizer=tokenizer, vocab_size=vocab_size)
    return Dataset(
        train=store.rows["train"],
        # `data.eval_tokens` counts padding too, so the number of sentences does not depend on their lengths.
        evaluation=store.rows["choose"][: max(1, data.eval_tokens // data.seq_len)],
        test=store.rows.get("test"),
        samples=store.samples,
        classes=store.classes,
        facts=store.facts,
        fingerprint=store.fingerprint,
        content_sha256=store.text_sha256,
        tokenizer=lambda: store.tokenizer,
    )


def _images(data: DataSpec, model: ModelSpec, task: type[Task]) -> Dataset:
    """Load labelled images; all held-out ones are used, since `data.eval_tokens` is about text."""
    rows, facts = load_images(data)
    # No tokenizer turns pixels into something else, so one hash is of the content and of the examples.
    digest = content_key([rows["train"].tolist(), rows["choose"].tolist()])
    return Dataset(
        train=rows["train"],
        evaluation=rows["choose"],
        samples=image_samples(),
        classes=tuple(map(str, range(10))),
        facts=facts,
        fingerprint=digest,
        content_sha256=digest,
    )
