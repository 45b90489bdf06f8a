"""Every score of every head of a pretrained model, on windows of a text, and its loss there without some heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysweep.contracts import HEAD_STATISTICS, Array, HeadStatistics, Slot
from raysweep.errors import UsageError
from raysweep.job.spec import ModelSpec
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.leave_one_out import Progress, bootstrap_interval, contributions
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.ranking import agreement
from raysweep.records.schema import perplexity
from raysweep.science.language_models import load_model, text_windows, trained_task
from raysweep.trial.data.examples import build_task
from raysweep.trial.data.tokenizers import pretrained_tokenizer
from raysweep.trial.measures.evaluation import evaluate, shared_batches
from raysweep.trial.runtime import Runtime

BATCH = 4
# No strategy scores heads by `signed_taylor`, and the one that scores them by `output_norm` is called `activation`.
SCORES = {name: name for name in HEAD_STATISTICS if name not in ("signed_taylor", "output_norm")}
SCORES["activation"] = "output_norm"
"""What a score is called, after its strategy, and the field of HeadStatistics that holds it."""


@dataclass(frozen=True, kw_only=True)
class HeadAnalysis:
    """A model's loss on a text and the scores of its heads, arrays of shape [layers][heads]."""

    seq_len: int
    windows: int
    predictions: int
    """Labels that the loss is the mean over."""
    task: str
    """What the model predicts, a file in raysweep/networks/tasks/."""
    absent: list[Slot]
    """Heads that the model was exported without; their scores are NaN."""
    masked: list[Slot]
    loss: float
    """Nats per prediction."""
    scores: dict[str, Array]
    interval: tuple[Array, Array] | None
    """Bounds of the contributions' 95% paired bootstrap interval over windows: there must be several."""
    agreement: dict[str, dict[str, float | None]] | None
    """Rank correlation of every score with the contributions."""

    def to_dict(self) -> dict[str, Any]:
        """Return the analysis as plain data; what could not be measured on so short windows is None."""
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
        progress: told how many of the passes that contributions take are done.

    Raises:
        ModelError: the model cannot be loaded or has too few positions.
        DataError: the text is missing, unreadable or too short.
        UsageError: a masked head is none of the model's.
    """
    learned = trained_task(model)  # an unknown model is no fault of its tokenizer
    spec = ModelSpec(name=model, task=learned)
    encoder, facts = pretrained_tokenizer(tokenizer or model)
    examples = text_windows(data, encoder, seq_len, windows)
    plastic, whole = load_model(spec, facts, seq_len)
    task, head_map = build_task(spec, facts), whole.without(_checked(masked, whole))
    runtime = Runtime(device=torch.device("cpu"))
    batches = shared_batches(examples, BATCH, task, runtime)
    plastic.set_gates(head_map)
    measured = evaluate(plastic, batches, runtime, "fp32")
    statistics = probe(plastic, batches, head_map, runtime.all_reduce)
    scores = {name: np.asarray(getattr(statistics, field)) for name, field in SCORES.items()}
    result: dict[str, Any] = {"interval": None, "agreement": None}
    if contribution:
        values = contributions(plastic, batches, head_map, progress)
        values[:, ~whole.present] = np.nan
        truth = scores["contribution"] = values.mean(0)
        interval = bootstrap_interval(values) if windows > 1 else None
        result = {"interval": interval, "agreement": _agreements(scores, truth, statistics)}
    return HeadAnalysis(
        seq_len=seq_len,
        windows=windows,
        predictions=sum(int((batch.labels != -100).sum()) for batch in batches),
        task=learned,
        absent=[(int(layer), int(head)) for layer, head in np.argwhere(~whole.present)],
        masked=sorted(set(masked)),
        loss=measured.loss,
        scores={name: np.where(whole.present, array, np.nan) for name, array in scores.items()},
        **result,
    )


def _agreements(scores: dict[str, Array], truth: Array, statistics: HeadStatistics) -> dict[str, Any]:
    present = statistics.present
    return {
        name: agreement(array, truth, present)
        for name, array in scores.items()
        if name != "contribution" and np.isfinite(array[present]).all()
    }


def _checked(masked: Sequence[Slot], whole: HeadMap) -> set[Slot]:
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
    return [[value if math.isfinite(value) else None for value in row] for row in rows.tolist()]
