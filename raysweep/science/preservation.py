"""Measure how far one network computes the function of another: predictions, hidden states and attention.

Both see the same windows in fp32. Predictions are compared at positions with a label, hidden states and attention at
all tokens but padding. docs/stress.md defines every number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, Batch, Examples, Mask
from raysweep.errors import DivergedError, ModelError
from raysweep.job.spec import ModelSpec
from raysweep.networks.plasticity.attention_divergence import attention_divergence
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.reports.wording import duration
from raysweep.science.language_models import load_plastic_model, text_windows, trained_task
from raysweep.science.observation import Outputs, observed
from raysweep.science.pnn.activity import real_tokens
from raysweep.science.statistics.finding import Interval
from raysweep.science.statistics.resampling import interval
from raysweep.science.statistics.similarity import FEWEST_TOKENS, alignments
from raysweep.trial.data.examples import build_task
from raysweep.trial.data.tokenizers import pretrained_tokenizer
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.runtime import Runtime

BATCH = 1
"""Windows at once: the logits of two networks over a whole vocabulary are in memory, in fp64."""
FEWEST_KEYS = 2
"""Queries with fewer keys are left out: with one visible key, attention to it is 1 in every network."""


@dataclass(frozen=True, kw_only=True)
class LayerSimilarity:
    """Similarity of the hidden states of two networks after the embedding or after one layer."""

    cosine: float
    """Mean over tokens of the cosine of their hidden states, in [-1, 1]."""
    cka: float | None
    """Unbiased linear CKA of the hidden states of a window (see `alignments`), mean over windows weighted by their
    tokens; None if all windows are too short for it."""


@dataclass(frozen=True, kw_only=True)
class Preservation:
    """Comparison of OTHER with MODEL."""

    windows: int
    predictions: int
    """Number of labels."""
    logit_cosine: float
    """Mean over predictions of the cosine of the logits."""
    kl: float
    """Mean over predictions of KL(MODEL || OTHER), nats."""
    agreement: float
    """Share of predictions whose largest logit is the same."""
    loss: float
    other_loss: float
    """Nats per prediction."""
    difference: Interval
    """OTHER's loss minus MODEL's, paired, with its 95% bootstrap interval over windows."""
    layers: list[LayerSimilarity]
    """Entry 0 is after the embedding, entry l after layer l."""
    divergence: list[list[float | None]]
    """[layer][head], by original position: Jensen-Shannon divergence of attention (Lin 1991) in nats, in [0, ln 2],
    mean over queries; None where the head is absent in one of the two."""
    heads: int
    other_heads: int
    """Numbers of present heads."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def preservation(
    name: str, other: str, data: Path, *, tokenizer: str | None, seq_len: int, windows: int, say: Callable[[str], None]
) -> Preservation:
    """Compare two trained language models on consecutive windows from the start of a text file.

    Args:
        name, other: hub names or folders; exports are compared in their full shape.
        tokenizer: hub name or folder. Default: the models' own, which must agree.
        say: called with an estimate of the time after the first batch.

    Raises:
        ModelError: a model cannot be loaded, or the two cannot be compared.
        DataError: the text is missing, unreadable or too short, or there is no tokenizer.
        DivergedError: a loss is not finite.
    """
    learned, other_learned = trained_task(name), trained_task(other)
    if learned != other_learned:
        raise ModelError(
            f"model {name!r} learned {learned}, {other!r} {other_learned}: give two that learned the same."
        )
    # Both are given the tokens of one tokenizer: token by token comparisons need the same positions.
    encoder, facts = pretrained_tokenizer(tokenizer or name)
    examples = text_windows(data, encoder, seq_len, windows)
    if tokenizer is None:
        _check_tokenizers(name, other, encoder, examples, data)
    spec, other_spec = (ModelSpec(name=model, task=learned) for model in (name, other))
    ours, theirs = (load_plastic_model(each, facts, seq_len) for each in (spec, other_spec))
    _check_alike(name, other, ours[0], theirs[0])
    batches = shared_batches(examples, BATCH, build_task(spec, facts), Runtime(device=torch.device("cpu")))
    return compare(ours, theirs, batches, say)


def compare(
    ours: tuple[PlasticModel, HeadMap], theirs: tuple[PlasticModel, HeadMap], batches: Sequence[Batch],
    say: Callable[[str], None] = lambda line: None,
) -> Preservation:  # fmt: skip
    """Compare two loaded models of the same shape on the same batches.

    Both are left in evaluation mode and fp32 at least, with the gates of their head maps.

    Raises:
        ModelError: a network does not show its hidden states or its attention, layer by layer.
        DivergedError: a loss is not finite.
    """
    # Divergence is defined for heads that both networks have.
    sums = _Sums(ours[1].present & theirs[1].present)
    started = time.perf_counter()
    with torch.no_grad(), observed(*ours) as one, observed(*theirs) as other:
        for number, batch in enumerate(batches, 1):
            sums.add(batch, one(batch), other(batch))
            # All batches are of one size, so the first gives the time of all.
            if number == 1:
                seconds = len(batches) * (time.perf_counter() - started)
                say(f"{len(batches)} batches through both models: about {duration(seconds)}")
    return sums.result(ours[1].active, theirs[1].active)


class _Sums:
    """Sums over batches, from which the means of `Preservation` follow."""

    def __init__(self, present: Mask) -> None:
        layers = len(present)
        self.present = present
        self.windows = 0
        self.predictions: list[Array] = []
        """Of each batch, (predictions, 6): cosine, KL, agreement, both losses, and the number of the window."""
        self.cosines, self.tokens = np.zeros(layers + 1), 0
        self.alignments, self.aligned = np.zeros(layers + 1), 0
        # Queries are counted by layer: masks may differ between layers, and with them the number of visible keys.
        self.divergences, self.queries = np.zeros(present.shape), np.zeros((layers, 1))

    def add(self, batch: Batch, one: Outputs, other: Outputs) -> None:
        """Add the outputs of both networks for a batch."""
        real = real_tokens(batch)
        self._add_predictions(batch, one, other)
        for layer, states in enumerate(zip(one.states, other.states, strict=True)):
            self._add_states(layer, real, torch.stack(states).double())
        self.tokens += int(real.sum())
        # Padding counts nowhere, and windows too short for a CKA are no part of its mean.
        long_enough = real.sum(1) >= FEWEST_TOKENS
        self.aligned += int(real[long_enough].sum())
        for layer, attended in enumerate(zip(one.attended, other.attended, strict=True)):
            divergence, keys = attention_divergence(*attended)
            # The mask is the same for all heads of a layer, so those of one head give the number of queries.
            counted = real[:, None] & (keys >= FEWEST_KEYS)
            # Divergences are (batch, heads, queries): summed over windows and queries, a number for each head remains.
            self.divergences[layer] += torch.where(counted, divergence, 0.0).sum((0, 2)).numpy()
            self.queries[layer] += int(counted[:, 0].sum())
        # Last: the predictions above are numbered from the windows before this batch.
        self.windows += len(batch.labels)

    def _add_predictions(self, batch: Batch, one: Outputs, other: Outputs) -> None:
        # Logits are fp64 here: the KL of nearly equal networks is made of differences of nearly equal numbers.
        log, other_log = one.logits.log_softmax(-1), other.logits.log_softmax(-1)
        columns = [
            torch.cosine_similarity(one.logits, other.logits, dim=-1),
            # KL(MODEL || OTHER): what OTHER gives little probability to though MODEL expects it counts most.
            (log.exp() * (log - other_log)).sum(-1),
            (one.logits.argmax(-1) == other.logits.argmax(-1)).double(),
            one.losses.double(),
            other.losses.double(),
            torch.nonzero(batch.labels != NO_LABEL)[:, 0].double() + self.windows,
        ]
        self.predictions.append(torch.stack(columns, dim=1).numpy())

    def _add_states(self, layer: int, real: torch.Tensor, states: torch.Tensor) -> None:
        """Add the states (2, batch, tokens, width) of both networks after one layer."""
        self.cosines[layer] += float(torch.cosine_similarity(states[0], states[1], dim=-1)[real].sum())
        for window, row in enumerate(real):
            if int(row.sum()) >= FEWEST_TOKENS:
                # Windows are weighted by their tokens, like all other means.
                self.alignments[layer] += alignments(states[:, window, row])[0, 1] * int(row.sum())

    def result(self, heads: int, other_heads: int) -> Preservation:
        """Return the means.

        Raises:
            DivergedError: a loss is not finite.
        """
        numbers = np.concatenate(self.predictions)
        cosine, kl, agreement, loss, other_loss, _ = numbers.mean(0).tolist()
        if not (math.isfinite(loss) and math.isfinite(other_loss)):
            raise DivergedError(f"the losses are {loss} and {other_loss}: there is no function to compare.")
        # Where all windows are too short for a CKA this is 0 / 0: NaN, which is reported as None.
        with np.errstate(invalid="ignore"):
            aligned = self.alignments / self.aligned
        # An absent head has uniform attention by its zero weights, which is no attention of the network.
        divergences = np.where(self.present, self.divergences / self.queries, np.nan)
        return Preservation(
            windows=self.windows, predictions=len(numbers), logit_cosine=cosine, kl=kl, agreement=agreement,
            loss=loss, other_loss=other_loss,
            difference=interval(
                numbers[:, 4] - numbers[:, 3], numbers[:, 5].astype(np.int64), np.random.default_rng(0)
            ),
            layers=[
                LayerSimilarity(cosine=float(alike), cka=_or_none(cka))
                for alike, cka in zip(self.cosines / self.tokens, aligned, strict=True)
            ],
            divergence=[[_or_none(value) for value in row] for row in divergences],
            heads=heads, other_heads=other_heads,
        )  # fmt: skip


def _or_none(value: float) -> float | None:
    """Return a value for JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None


def _check_tokenizers(name: str, other: str, encoder: Any, examples: Examples, data: Path) -> None:
    """Check that OTHER reads the same tokens: the same vocabulary, and the same tokens of the text."""
    # Equal vocabularies are not enough: merges and normalisation may differ.
    theirs, _ = pretrained_tokenizer(other)
    way_out = "Models are compared on the same tokens; if both take those of one tokenizer, name it with --tokenizer."
    if encoder.get_vocab() != theirs.get_vocab():
        raise ModelError(f"models {name!r} and {other!r} have different vocabularies. {way_out}")
    if not np.array_equal(examples, text_windows(data, theirs, examples.shape[1], len(examples))):
        raise ModelError(f"the tokenizers of models {name!r} and {other!r} cut the text differently. {way_out}")


def _check_alike(name: str, other: str, one: PlasticModel, two: PlasticModel) -> None:
    """Check that two models have the same shape: vocabulary, layers, heads and width."""
    # Hidden states and heads are compared position by position: a cosine of two widths does not exist.
    for what, ours, theirs in (
        ("tokens", one.network.config.vocab_size, two.network.config.vocab_size),
        ("layers", one.shape[0], two.shape[0]),
        ("heads in a layer", one.shape[1], two.shape[1]),
        ("dimensions", one.network.config.hidden_size, two.network.config.hidden_size),
    ):
        if ours != theirs:
            raise ModelError(
                f"model {name!r} has {ours} {what}, {other!r} {theirs}: they are compared position by position. Give "
                "an OTHER that was made from MODEL, such as its pruned copy."
            )
