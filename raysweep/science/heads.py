"""Measure every score of every head of a pretrained model on windows of a text, and the model's loss there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysweep.contracts import HEAD_STATISTICS, Array, Batch, HeadStatistics, Slot
from raysweep.errors import UsageError
from raysweep.job.spec import ModelSpec
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.leave_one_out import Progress, bootstrap_interval, contributions
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.ranking import agreement
from raysweep.records.schema import perplexity
from raysweep.science.language_models import load_plastic_model, text_windows, trained_task
from raysweep.trial.data.examples import build_task
from raysweep.trial.data.tokenizers import pretrained_tokenizer
from raysweep.trial.measures.evaluation import evaluate, shared_batches
from raysweep.trial.runtime import Runtime

BATCH = 4
"""Windows at once."""
RUNTIME = Runtime(device=torch.device("cpu"))
# No strategy scores heads by `signed_taylor`, and the one that scores them by `output_norm` is called `activation`.
SCORES = {name: name for name in HEAD_STATISTICS if name not in ("signed_taylor", "output_norm")}
SCORES["activation"] = "output_norm"
"""Name of a score, which is that of its pruning strategy -> the field of HeadStatistics that holds it."""


@dataclass(frozen=True, kw_only=True)
class HeadAnalysis:
    """The loss of a model on a text and the scores of its heads, arrays of shape [layers][heads]."""

    seq_len: int
    windows: int
    predictions: int
    """Number of labels, which the loss is the mean over."""
    task: str
    """The task that the model was trained for, a file in raysweep/networks/tasks/."""
    absent: list[Slot]
    """Heads that the model was exported without; their scores are NaN."""
    masked: list[Slot]
    """Heads that were silenced while everything was measured."""
    loss: float
    """Nats per prediction."""
    scores: dict[str, Array]
    interval: tuple[Array, Array] | None
    """Bounds of the contributions' 95% paired bootstrap interval over windows; None of a single window."""
    agreement: dict[str, dict[str, float | None]] | None
    """Rank correlations of every score with the contributions; see `ranking.agreement`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the analysis as plain data; scores that windows are too short for are None."""
        # Tuples become lists here, so that the dict equals what is read back from JSON.
        content: dict[str, Any] = {
            "seq_len": self.seq_len,
            "windows": self.windows,
            "task": self.task,
            "predictions": self.predictions,
            "absent": [list(slot) for slot in self.absent],
            "mask": [list(slot) for slot in self.masked],
            "loss": self.loss,
            "perplexity": perplexity(self.loss),
            "scores": {name: _plain(scores) for name, scores in self.scores.items()},
        }
        # Without contributions their keys are left out: a null would read as measured and not found.
        if self.interval is not None:
            low, high = self.interval
            content["contribution_interval"] = {"level": 0.95, "low": _plain(low), "high": _plain(high)}
        if self.agreement is not None:
            content["agreement"] = self.agreement
        return content


def analyze_heads(
    model: str,
    data: Path,
    *,
    tokenizer: str | None = None,
    seq_len: int,
    windows: int,
    masked: Sequence[Slot] = (),
    contribution: bool = False,
    progress: Progress = lambda done, total: None,
) -> HeadAnalysis:
    """Measure the heads of a pretrained model on consecutive windows from the start of a text file.

    The text is tokenized without special tokens. Scores are those of the strategies of the same names; heads in
    `masked` are silenced while everything is measured, and their own scores are those behind the closed gate
    (docs/scores.md).

    Args:
        tokenizer: hub name or folder of one. Default: the model's own.
        contribution: measure by how much the loss rises without each head, too: one pass for each head and batch.
        progress: called with the number of these passes that are done and their total.

    Raises:
        ModelError: the model cannot be loaded or has too few positions.
        DataError: the text is missing, unreadable or too short.
        UsageError: the model has no such head as one of `masked`.
    """
    # The model is looked up first: otherwise an unknown model would be reported as a tokenizer that is missing.
    learned = trained_task(model)
    spec = ModelSpec(name=model, task=learned)
    encoder, facts = pretrained_tokenizer(tokenizer or model)
    examples = text_windows(data, encoder, seq_len, windows)
    # `whole` holds the heads that the model has; masked ones are closed on top of it.
    plastic, whole = load_plastic_model(spec, facts, seq_len)
    # The batches' labels are the task's: the next token of a causal model, hidden tokens of a masked one.
    batches = shared_batches(examples, BATCH, build_task(spec, facts), RUNTIME)
    return _analysis(plastic, whole, _checked(masked, whole), batches, learned, progress if contribution else None)


def _analysis(
    plastic: PlasticModel, whole: HeadMap, masked: set[Slot], batches: Sequence[Batch], task: str,
    progress: Progress | None,
) -> HeadAnalysis:  # fmt: skip
    """Measure a loaded model on batches; contributions only where their progress is to be reported."""
    present, windows = whole.without(masked), sum(len(batch.inputs) for batch in batches)
    # Evaluation and probe see the network as it is with `masked` silenced.
    plastic.set_gates(present)
    loss = evaluate(plastic, batches, RUNTIME, "fp32").loss
    statistics = probe(plastic, batches, present, RUNTIME.all_reduce)
    scores = {name: np.asarray(getattr(statistics, field)) for name, field in SCORES.items()}
    interval, ranks = None, None
    if progress is not None:
        values = _contributions(plastic, batches, present, whole, progress)
        scores["contribution"] = values.mean(0)
        # A bootstrap over windows needs at least two of them.
        interval = bootstrap_interval(values) if windows > 1 else None
        ranks = _agreements(scores, statistics)
    return HeadAnalysis(
        seq_len=batches[0].inputs.shape[1],
        windows=windows,
        predictions=sum(int((batch.labels != NO_LABEL).sum()) for batch in batches),
        task=task,
        absent=[(int(layer), int(head)) for layer, head in np.argwhere(~whole.present)],
        masked=sorted(masked),
        loss=loss,
        # An absent head has zero weights, and so a score of 0 or one of uniform attention: neither is a measurement.
        scores={name: np.where(whole.present, array, np.nan) for name, array in scores.items()},
        interval=interval,
        agreement=ranks,
    )


def _contributions(
    plastic: PlasticModel, batches: Sequence[Batch], present: HeadMap, whole: HeadMap, progress: Progress
) -> Array:
    """Return the rise of each window's loss without each head, (windows, layers, heads).

    A masked head contributes 0: it is silent already. A head that the model does not have is NaN.
    """
    values = contributions(plastic, batches, present, progress)
    values[:, ~whole.present] = np.nan
    return values


def _agreements(scores: dict[str, Array], statistics: HeadStatistics) -> dict[str, Any]:
    present, truth = statistics.present, scores["contribution"]
    return {
        name: agreement(array, truth, present)
        for name, array in scores.items()
        # Windows of two tokens have no sink-free entropy: a ranking by NaN would be one of nothing.
        if name != "contribution" and np.isfinite(array[present]).all()
    }


def _checked(masked: Sequence[Slot], whole: HeadMap) -> set[Slot]:
    """Return the heads to silence, each once; every one must be present in the model."""
    # A user who masks a head that does not exist should not get the result of another mask.
    layers, heads = whole.present.shape
    for layer, head in masked:
        if not (0 <= layer < layers and 0 <= head < heads):
            raise UsageError(
                f"--mask {layer}.{head}: the model has {layers} layers of {heads} heads, "
                f"0.0 to {layers - 1}.{heads - 1}."
            )
        if not whole.present[layer, head]:
            raise UsageError(f"--mask {layer}.{head}: that head was pruned already.")
    return set(masked)


def _plain(rows: Array) -> list[list[float | None]]:
    """Return rows as lists; JSON has no NaN, so None stands for it."""
    return [[value if math.isfinite(value) else None for value in row] for row in rows.tolist()]
