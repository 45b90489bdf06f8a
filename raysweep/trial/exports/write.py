"""Export a trial as a folder: whole or not at all, and only after it was read back and compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from raysweep.errors import TrialError, UsageError
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.configuration import task_of
from raysweep.networks.plasticity.compaction import compact, key_value_index
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of
from raysweep.networks.quiet import quietly
from raysweep.records.atomic_folders import renamed_into_place
from raysweep.records.folder import SweepFolder
from raysweep.trial.data.tokenizers import special_roles, tokenizer_source
from raysweep.trial.exports.card import card
from raysweep.trial.exports.finished import FinishedTrial, restore
from raysweep.trial.exports.load import load_model
from raysweep.trial.exports.manifest import Format, Manifest

LARGEST_DIFFERENCE = 1e-5
"""Largest difference between the logits of the masked model and of the written one, relative to the largest logit."""


def export(folder: SweepFolder, trial: int, out: Path, form: Format) -> Manifest:
    """Write a trial's model as a folder.

    Args:
        out: the folder to write, which does not exist or is empty.
        form: `compact` leaves the absent heads out, for `raysweep.load_model`; `dense` is for plain transformers.

    Raises:
        UsageError: `out` is not empty or cannot be written, or the trial cannot be exported.
        TrialError: the written model differs from the trial's.
    """
    check_free(out)
    finished = restore(folder, trial)
    manifest = _manifest(finished, form)
    with _refused(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with renamed_into_place(out, out.parent, translate=_refused(out)) as part:
        # Dense weights get the names that other programs know. Compact ones keep the network's own names, by which
        # load_model fills them in.
        with quietly():
            _network(finished, form).save_pretrained(part, save_original_format=form == "dense")
        _save_tokenizer(finished, part)
        manifest.write(part)
        (part / "README.md").write_text(
            card(finished.plan, finished.records, manifest, finished.data.facts), encoding="utf-8"
        )
        # Inside the block: a folder that cannot be read back never gets its name.
        _check_read_back(finished, part)
    # The note keeps garbage collection from the exported checkpoint. Where the sweep's folder is read-only, nothing can
    # be collected either, and an export needs no note.
    if os.access(folder.path, os.W_OK):
        folder.add_export(trial, manifest.plan_key, out.resolve())
    return manifest


def _network(finished: FinishedTrial, form: Format) -> Any:
    """Return the network to write. For a dense one nothing is to be done: slices of absent heads are zero already."""
    network: Any = finished.state.model.network
    return network if form == "dense" else compact(network, finished.family, finished.state.head_map)


def _manifest(finished: FinishedTrial, form: Format) -> Manifest:
    """Return the content of raysweep.json."""
    plan, last, state = finished.plan, finished.last, finished.state
    return Manifest(
        format=form,
        family=state.model.network.config.model_type,
        task=task_of(ModelSpec(**plan.model)),
        model_class=type(state.model.network).__name__,
        base_model=plan.model["name"],
        sweep=finished.sweep,
        trial=plan.trial,
        plan_key=last.key,
        cycles=last.cycle,
        head_map=state.head_map.to_lists(),
        kv_index=[key_value_index(site, state.head_map) for site in state.model.sites],
        metrics={
            "loss": last.loss, "perplexity": last.perplexity, "accuracy": last.accuracy, **last.metrics,
            "active_heads": last.active_heads, "parameters": last.params, "flops_per_token": last.flops_per_token,
        },
        data={**plan.data, "sha256": last.data_sha256},
        versions={name: version(name) for name in ("raysweep", "torch", "transformers")},
    )  # fmt: skip


def _save_tokenizer(finished: FinishedTrial, folder: Path) -> None:
    """Write the tokenizer that the trial read its corpus with, if it has one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    facts, load = finished.data.facts, finished.data.tokenizer
    if load is None:
        return
    name, vocab_size = tokenizer_source(ModelSpec(**finished.plan.model), DataSpec(**finished.plan.data))
    # A pretrained one is loaded anew, because the one in use has truncation and padding switched off. One that was
    # trained here gets transformers' names for its special tokens.
    if vocab_size is None:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    else:
        trained = load()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **special_roles(trained, facts))
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _check_read_back(finished: FinishedTrial, folder: Path) -> None:
    """Check that the written model has the logits of the masked one, on a few held-out examples.

    Raises:
        TrialError: they differ by more than rounding.
    """
    batch = finished.held_out_batch()
    network = load_model(folder)
    expected = logits_of(finished.state.model, batch)
    found = logits_of(PlasticModel(network, finished.family.sites(network)), batch)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
    # Written so that a NaN is refused, too: every comparison with it is false.
    if not difference <= LARGEST_DIFFERENCE:
        raise TrialError(f"the exported model's logits differ from the trial's by {difference:.1e} (relative).")


def check_free(out: Path) -> None:
    """Check that `out` does not exist or is an empty folder.

    Raises:
        UsageError: there is something that would be overwritten.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        what = "is not empty" if out.is_dir() else "is a file"
        raise UsageError(f"OUT = {str(out)!r} {what}; nothing is overwritten. Name another folder.")


@contextmanager
def _refused(out: Path) -> Iterator[None]:
    """Raise a UsageError that names `out` where the system refuses to make a folder."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"OUT = {str(out)!r} cannot be written ({error.strerror}). Name another folder.") from error
