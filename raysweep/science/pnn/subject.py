"""Load the subject of an analysis: a network, held-out text with fixed masks, and untrained networks as its null."""

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
"""Sequences in a batch."""
TWINS = 10
"""Untrained networks that a figure of a whole network is compared with."""


@dataclass(frozen=True, kw_only=True)
class PnnSubject:
    """A network to analyse, with the text and the null models of every analysis."""

    network: Any
    """A PnnForMaskedLM in evaluation mode."""
    untrained: Any
    """A network of the same configuration with new random weights: the null of an effect of training."""
    batches: Sequence[Batch]
    """Held-out sequences, whose masked positions are `labelled`: the same ones for every analysis, all of them replaced
    by the mask token."""
    train: Examples
    """Training split, (sequences, tokens)."""
    frequency: Array
    """(vocabulary,): how often each token occurs in the training split."""
    facts: Facts
    seed: int = 0
    compared: Mapping[str, Any] = field(default_factory=dict)
    """Other networks over the same vocabulary, by name: other trunks, or retrained with another gate."""

    def predictions(self, steps: int | None = None) -> Predictions:
        """Return what the network predicts at the masked positions."""
        return predictions(self.network, self.batches, steps)

    def twins(self) -> Iterator[Any]:
        """Yield TWINS further untrained networks, which show how much such networks differ by chance."""
        # One at a time: all of them together would need ten times the memory of the network.
        for number in range(TWINS):
            yield untrained_twin(self.network, derived_seed(str(self.seed), f"twin {number}"))

    def difficulty(self) -> Array:
        """Return the difficulty of each masked token by counts of its neighbours, nats, (tokens,); see `reference`."""
        assert self.facts.mask_token is not None
        return difficulty(self.batches, self.train, self.frequency, self.facts.mask_token)

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a generator seeded by a purpose: the same random numbers for the same purpose, every time."""
        # So an analysis has the same result alone as among all others, and its pictures do not change its tests.
        return np.random.default_rng(derived_seed(str(self.seed), purpose))

    def require_gate(self) -> None:
        """Check that the network has a gate that depends on the input.

        Raises:
            NotApplicableError: it has none.
        """
        config = self.network.config
        if not has_gate(self.network):
            raise NotApplicableError(
                f"it measures a gate that depends on the input: gate = 'query_key' of a refiner. This network's trunk "
                f"is {config.trunk!r}, its gate {config.gate!r}."
            )


def load_subject(folder: str, data: DataSpec, *, seed: int = 0, compared: Sequence[str] = ()) -> PnnSubject:
    """Load a network and the held-out text to analyse it on.

    Args:
        folder: an export of raysweep, or a folder that save_pretrained wrote.
        data: its `seq_len` is the length of a sequence, `eval_tokens` the number of held-out tokens; its tokenizer is
            the one in the folder unless it names another.
        seed: of the untrained networks and of all resampling.
        compared: folders of other networks.

    Raises:
        ModelError: a folder does not hold a PnnForMaskedLM with exactly its weights, or that network does not take
            this text.
        DataError: the corpus cannot be loaded, or is too short.
    """
    runtime = Runtime(device=torch.device("cpu"))
    network = load_masked_lm(folder)
    others = {name: load_masked_lm(name) for name in compared}
    # Lengths are checked before the text is tokenized, which may take minutes; vocabularies need the tokenizer.
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
    """Load a PnnForMaskedLM in evaluation mode. Its weights and those in the folder must be the same set.

    Raises:
        ModelError: there is no such folder, it holds another network, or weights are missing, left over or misshapen.
    """
    # The configuration is checked first: an export of another network would be loaded as well.
    config = _config(folder)
    if is_export(folder):
        return load_model(folder)
    try:
        with quietly():
            # Left alone, transformers draws missing weights at random with a warning, and the analysis would be one of
            # another network. Shapes that differ are not raised here but reported below, with everything else.
            network, report = PnnForMaskedLM.from_pretrained(
                folder, config=config, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=True,
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
    """Return the data to analyse a network on: the named ones, or those that an export was trained on.

    Args:
        name: of a corpus; None for the export's.
        seq_len: tokens in a sequence; None for as many as the network has positions.

    Raises:
        ModelError: the folder holds no PnnForMaskedLM.
        UsageError: no data are named, and the folder does not say what it was trained on.
    """
    stored = Manifest.read(Path(folder)).data if is_export(folder) else {}
    if name is None and not stored:
        raise UsageError(f"model {folder!r} does not say what it was trained on. Name a text with --data.")
    # An export brings its text with all settings; a named text starts from the defaults.
    own = DataSpec(name=name) if name is not None else DataSpec(**_known(stored))
    positions = _config(folder).max_position_embeddings
    changes = {"seq_len": seq_len or positions, "eval_tokens": eval_tokens, "tokenizer": tokenizer}
    return own.model_copy(update=changes)


def _known(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored settings that this version has; exports of other versions may hold others."""
    return {name: value for name, value in stored.items() if name in DataSpec.model_fields}


def untrained_twin(network: Any, seed: int) -> Any:
    """Return a network of the same configuration and precision with weights drawn from a seed."""
    # Weights are drawn from torch's global generator, whose state is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = PnnForMaskedLM(network.config)
    return twin.to(next(network.parameters()).dtype).eval()


def masked_batches(held_out: Examples, facts: Facts, runtime: Runtime) -> list[Batch]:
    """Return held-out rows (sequences, tokens) as batches with fixed masks.

    The masked positions of a row depend on its index alone, so that every condition is measured on the same tokens.
    """
    # All masked positions hold the mask token, even for a network trained with the 80/10/10 rule of BERT, which would
    # leave every tenth label in sight.
    task = registry.load("tasks", TASK)(facts=dataclasses.replace(facts, masking="mask"))
    return shared_batches(held_out, BATCH, task, runtime)


def visible_batches(batches: Sequence[Batch], facts: Facts) -> list[Batch]:
    """Return the same inputs with visible tokens as labels: in each row as many as are masked, from its start."""
    return [_in_sight(batch, facts) for batch in batches]


def _in_sight(batch: Batch, facts: Facts) -> Batch:
    # As many labels as masked ones, so that both means rest on equally many tokens of each sequence.
    visible = real_tokens(batch) & (batch.labels == NO_LABEL) & (batch.inputs != facts.mask_token)
    wanted = (batch.labels != NO_LABEL).sum(1, keepdim=True)
    chosen = visible & (visible.cumsum(1) <= wanted)
    labels = torch.where(chosen, batch.inputs, NO_LABEL)
    return dataclasses.replace(batch, labels=labels, labelled=torch.nonzero(chosen.flatten())[:, 0])


def frequency_of(train: Examples, vocab_size: int) -> Array:
    """Return how often each token occurs in the training rows (sequences, tokens), (vocabulary,)."""
    return np.bincount(np.asarray(train).ravel().astype(np.int64), minlength=vocab_size).astype(float)


def _config(folder: str) -> Any:
    """Return the configuration of the PnnForMaskedLM in a folder.

    Raises:
        ModelError: there is none, or it is that of another network.
    """
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
