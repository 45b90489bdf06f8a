"""A network under analysis: its weights, held-out text with fixed masks, and what its nulls are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from raysweep.contracts import Array, Batch, Examples, Facts
from raysweep.errors import DataError, ModelError, NotApplicableError, UsageError
from raysweep.job import registry
from raysweep.job.plan import derived_seed
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.networks.pnn.network import PnnForMaskedLM
from raysweep.networks.quiet import quietly
from raysweep.science.language_models import check_length, check_vocabulary
from raysweep.science.pnn.activity import real_tokens
from raysweep.science.pnn.interventions import has_gate
from raysweep.science.pnn.reference import difficulty
from raysweep.science.pnn.trace import Predictions, predictions
from raysweep.science.statistics.resampling import FEWEST_SEQUENCES
from raysweep.trial.data.examples import Dataset, load_dataset
from raysweep.trial.exports.load import is_export, load_model
from raysweep.trial.exports.manifest import Manifest
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.runtime import Runtime

TASK = "masked_lm"
BATCH = 16
TWINS = 10
"""Untrained networks that a figure of the whole network is held against."""


@dataclass(frozen=True, kw_only=True)
class PnnSubject:
    """What every analysis is given."""

    network: Any
    """A PnnForMaskedLM in evaluation mode."""
    untrained: Any
    """The same configuration with weights drawn anew: the null of what training did."""
    batches: Sequence[Batch]
    """Held-out sequences, whose masked positions are `labelled`: the same ones for every analysis, all of them replaced
    by the mask token."""
    train: Examples
    """Rows of tokens of the training split (sequences, tokens)."""
    frequency: Array
    """(vocabulary,): how often each token stands there."""
    facts: Facts
    seed: int = 0
    compared: Mapping[str, Any] = field(default_factory=dict)
    """Other networks over the same vocabulary, by name: other trunks, or retrained with another gate."""

    def predictions(self, steps: int | None = None) -> Predictions:
        """Return what the network predicts at the masked positions."""
        return predictions(self.network, self.batches, steps)

    def twins(self) -> Iterator[Any]:
        """Yield further untrained networks, one at a time: how much such networks differ by chance."""
        for number in range(TWINS):
            yield untrained_twin(self.network, derived_seed(str(self.seed), f"twin {number}"))

    def difficulty(self) -> Array:
        """Return how hard each masked token is by counts of its neighbours, nats, (tokens,); see `reference`."""
        assert self.facts.mask_token is not None
        return difficulty(self.batches, self.train, self.frequency, self.facts.mask_token)

    def generator(self, purpose: str) -> np.random.Generator:
        """Return random numbers of their own for each purpose; the same ones whenever it is asked."""
        return np.random.default_rng(derived_seed(str(self.seed), purpose))

    def require_gate(self) -> None:
        """Check that there is a gate that depends on the input.

        Raises:
            NotApplicableError: there is none.
        """
        config = self.network.config
        if not has_gate(self.network):
            raise NotApplicableError(
                f"it measures a gate that depends on the input: gate = 'query_key' of a refiner. This network's trunk "
                f"is {config.trunk!r}, its gate {config.gate!r}."
            )


def load_subject(folder: str, data: DataSpec, *, seed: int = 0, compared: Sequence[str] = ()) -> PnnSubject:
    """Load a network and the held-out text that it is looked at with.

    Args:
        folder: an export of raysweep, or what save_pretrained wrote.
        data: its `seq_len` is the length of a sequence, `eval_tokens` how many tokens are held out; its tokenizer is
            the one in the folder unless it names another.
        compared: folders of other networks.

    Raises:
        ModelError: a folder is no whole PnnForMaskedLM, or does not take this text.
        DataError: the corpus cannot be had, or holds too little text.
    """
    runtime = Runtime(device=torch.device("cpu"))
    network = load_masked_lm(folder)
    others = {name: load_masked_lm(name) for name in compared}
    for name, other in {folder: network, **others}.items():
        check_length(name, other.config.max_position_embeddings, data.seq_len)
    spec = ModelSpec(name=folder, task=TASK)
    dataset = load_dataset(data, spec)
    _check_enough(dataset, data)
    for name, other in {folder: network, **others}.items():
        check_vocabulary(name, other, dataset.facts)
    return PnnSubject(
        network=network,
        untrained=untrained_twin(network, derived_seed(str(seed), "untrained")),
        batches=masked_batches(dataset.evaluation, dataset.facts, runtime),
        train=dataset.train,
        frequency=frequency_of(dataset.train, network.config.vocab_size),
        facts=dataset.facts,
        seed=seed,
        compared=others,
    )


def load_masked_lm(folder: str) -> Any:
    """Return a network in evaluation mode, every weight of it from the folder and no other weight in there.

    Raises:
        ModelError: there is no such folder, it holds another network, or keys are missing or left over.
    """
    config = _config(folder)
    if is_export(folder):
        return load_model(folder)
    try:
        with quietly():
            network, report = PnnForMaskedLM.from_pretrained(
                folder, config=config, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=True,  # told below, with what else is wrong
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {folder!r} cannot be loaded: {_reason(error)}") from error
    wrong = [f"{problem}: {', '.join(sorted(map(str, names))[:5])}" for problem, names in report.items() if names]
    if wrong:
        raise ModelError(f"the weights of model {folder!r} are not its configuration's; {'; '.join(wrong)}.")
    return network.eval()


def held_out_data(
    folder: str, name: str | None, *, tokenizer: str | None, seq_len: int | None, eval_tokens: int
) -> DataSpec:
    """Return what a network is to be looked at with: the named data, or what an export was trained on.

    Raises:
        ModelError: the folder holds no PnnForMaskedLM.
        UsageError: no data are named, and the folder says nothing of any.
    """
    stored = Manifest.read(Path(folder)).data if is_export(folder) else {}
    if name is None and not stored:
        raise UsageError(f"model {folder!r} does not say what it was trained on. Name a text with --data.")
    own = DataSpec(name=name) if name is not None else DataSpec(**_known(stored))
    positions = _config(folder).max_position_embeddings
    changes = {"seq_len": seq_len or positions, "eval_tokens": eval_tokens, "tokenizer": tokenizer}
    return own.model_copy(update=changes)


def _known(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name in DataSpec.model_fields}


def untrained_twin(network: Any, seed: int) -> Any:
    """Return a network of the same configuration and precision with weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = PnnForMaskedLM(network.config)
    return twin.to(next(network.parameters()).dtype).eval()


def masked_batches(held_out: Examples, facts: Facts, runtime: Runtime) -> list[Batch]:
    """Return held-out rows as batches; each row's masked positions follow from its index alone.

    All of them hold the mask token, however the network was trained, so that no label is in sight.
    """
    task = registry.load("tasks", TASK)(facts=dataclasses.replace(facts, masking="mask"))
    return shared_batches(held_out, BATCH, task, runtime)


def visible_batches(batches: Sequence[Batch], facts: Facts) -> list[Batch]:
    """Return the same inputs with tokens in sight as labels: as many of each row as are masked there, from its start.

    Neither padding nor the mask token is one of them.
    """
    return [_in_sight(batch, facts) for batch in batches]


def _in_sight(batch: Batch, facts: Facts) -> Batch:
    visible = real_tokens(batch) & (batch.labels == NO_LABEL) & (batch.inputs != facts.mask_token)
    wanted = (batch.labels != NO_LABEL).sum(1, keepdim=True)
    chosen = visible & (visible.cumsum(1) <= wanted)
    labels = torch.where(chosen, batch.inputs, NO_LABEL)
    return dataclasses.replace(batch, labels=labels, labelled=torch.nonzero(chosen.flatten())[:, 0])


def frequency_of(train: Examples, vocab_size: int) -> Array:
    """Return how often each token stands in the training rows, (vocabulary,)."""
    return np.bincount(np.asarray(train).ravel().astype(np.int64), minlength=vocab_size).astype(float)


def _config(folder: str) -> Any:
    """Return the configuration of a PnnForMaskedLM."""
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(
            f"model {folder!r} is no folder with a config.json. Give one that 'raysweep export' or save_pretrained "
            "wrote."
        )
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"'config.json' of model {folder!r} cannot be read: {_reason(error)}") from error
    architectures = config.architectures or []
    if config.model_type != "pnn" or "PnnForMaskedLM" not in architectures:
        found = architectures[0] if architectures else config.model_type
        raise ModelError(f"model {folder!r} is a {found}; give a PnnForMaskedLM.")
    return config


def _reason(error: Exception) -> str:
    """Return the message of a library's error on one line; transformers writes whole paragraphs."""
    return " ".join(str(error).split())[:300]


def _check_enough(dataset: Dataset, data: DataSpec) -> None:
    if len(dataset.evaluation) < FEWEST_SEQUENCES:
        raise DataError(
            f"--data {data.name!r} has {len(dataset.evaluation)} held-out sequences of {data.seq_len} tokens, fewer "
            f"than {FEWEST_SEQUENCES}. Give a longer text, a smaller --seq-len, or more --eval-tokens."
        )
