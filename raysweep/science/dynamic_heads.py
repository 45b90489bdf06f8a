"""Measure loss against FLOPs of a model whose heads open for some tokens only, beside static pruning.

The network is frozen. Routers are trained on its loss plus a penalty on the expected FLOPs of open heads, and each
penalty gives one point of the curve. A point is compared with the largest network pruned by Taylor scores that costs no
more, on the same held-out windows; that network is not trained further, as the routed one's weights are not either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Batch
from raysweep.errors import DataError, ModelError
from raysweep.job import registry
from raysweep.job.plan import derived_seed
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.plasticity.accounting import flops_per_token
from raysweep.networks.plasticity.budget import lowest_heads
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of, losses_of, mean_loss
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.routing import HeadRouters
from raysweep.records.schema import perplexity
from raysweep.science.language_models import load_plastic_model, trained_task
from raysweep.trial.data.tokens import BatchOrder, TokenStore, prepare, windows_of
from raysweep.trial.measures.evaluation import evaluate, shared_batches
from raysweep.trial.measures.measures import PROBE_BATCH
from raysweep.trial.runtime import Runtime

TASK = "causal_lm"
TIMED = 9
"""Forward passes of a timing, of which the median counts."""


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """Penalties to try, and how routers are trained."""

    penalties: Sequence[float] = (0.1, 0.3, 1.0, 3.0)
    """Penalty on the loss, in nats, if all present heads were open; each gives one point of the curve."""
    steps: int = 100
    """Training steps of the routers."""
    batch_size: int = 8
    lr: float = 1e-2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StaticNetwork:
    """A network with the same heads for every token."""

    heads: int
    flops_per_token: float
    loss: float
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """The result of one penalty on the held-out windows."""

    penalty: float
    open_share: float
    """Share of (token, present head) pairs that were open."""
    flops_per_token: float
    """Counted FLOPs, routers included; see `RouterCurve.seconds_per_token` for the time."""
    loss: float
    """Nats per prediction."""
    perplexity: float
    static: StaticNetwork | None
    """Taylor pruning at no more FLOPs; None where one head in each layer still costs more."""


@dataclass(frozen=True, kw_only=True)
class RouterCurve:
    """Loss against FLOPs of a model, with all settings that are needed to measure it again."""

    model: str
    data: str
    data_sha256: str
    seq_len: int
    question: RouterOptions
    """Options of the measurement."""
    full: StaticNetwork
    """The model with its present heads open for every token."""
    points: list[CostPoint]
    seconds_per_token: dict[str, float]
    """Measured times: `plain`, and `gated` with the routers of the last point. Closed heads are multiplied by 0, not
    skipped, so the gated time is no measure of what skipping would save."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def here() -> Runtime:
    """Return the runtime of a single process, on a GPU if there is one."""
    return Runtime(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def dynamic_heads(name: str, data: DataSpec, options: RouterOptions, runtime: Runtime) -> RouterCurve:
    """Measure a model on a corpus.

    Args:
        name: hub name, folder or export of a causal language model.

    Raises:
        ModelError: the model cannot be loaded, or is no causal language model.
        DataError: the corpus cannot be loaded, or is too short.
        TrialError: no head can be ranked.
    """
    # Training and evaluation splits are apart: routers learn on one, and everything is measured on the other.
    model, head_map, tokens = _load(name, data, runtime)
    train = windows_of(tokens.train, data.seq_len)
    held_out = windows_of(tokens.evaluation[: data.eval_tokens], data.seq_len)
    if len(train) < max(options.batch_size, data.probe_windows):
        raise DataError(
            f"data.name = {data.name!r} is too short: {len(train)} training windows of {data.seq_len} tokens, but a "
            f"batch takes {options.batch_size} and the probe {data.probe_windows}. Give a longer text."
        )
    return router_curve(model, head_map, train, held_out, data, options, runtime, name=name, sha256=tokens.text_sha256)


def router_curve(
    model: PlasticModel, head_map: HeadMap, train: Any, held_out: Any, data: DataSpec, options: RouterOptions,
    runtime: Runtime, *, name: str, sha256: str,
) -> RouterCurve:  # fmt: skip
    """Measure a loaded model; its weights and gates are left unchanged.

    Args:
        train, held_out: windows of tokens (count, seq_len).
        name, sha256: of the model and of the text, for the record.
    """
    task = registry.build("tasks", TASK)
    batches = shared_batches(held_out, options.batch_size, task, runtime)
    # Heads are scored on training windows: held-out ones would choose the heads by what is measured afterwards.
    probed = shared_batches(train[: data.probe_windows], PROBE_BATCH, task, runtime)
    seq_len = data.seq_len
    with _frozen(model):
        model.set_gates(head_map)
        full = _measured_static(model, head_map, batches, seq_len, runtime)
        pruned = _StaticPruning(model, head_map, probed, seq_len, runtime)
        # The routers of the last point are timed; without a penalty, untrained ones are.
        points, routers = [], HeadRouters(model, head_map)
        for penalty in options.penalties:
            routers = train_routers(model, head_map, train, penalty, options, runtime)
            points.append(_point(penalty, routers, pruned, batches, runtime))
            # The static network left its own gates set; the next routers are to see the model as it was.
            model.set_gates(head_map)
        seconds = _seconds_per_token(model, routers, batches[0])
    return RouterCurve(
        model=name, data=data.name, data_sha256=sha256, seq_len=seq_len, question=options, full=full, points=points,
        seconds_per_token=seconds,
    )  # fmt: skip


def train_routers(
    model: PlasticModel, head_map: HeadMap, train: Any, penalty: float, options: RouterOptions, runtime: Runtime
) -> HeadRouters:
    """Return routers trained on windows (count, seq_len) of tokens; the model is left unchanged."""
    task = registry.build("tasks", TASK)
    routers = HeadRouters(model, head_map)
    optimizer = torch.optim.Adam(routers.parameters(), lr=options.lr)
    seed = derived_seed(str(options.seed), "routers")
    # All penalties see the same windows in the same order: points of the curve differ in the penalty alone.
    order = BatchOrder(num_windows=len(train), batch_size=options.batch_size, seed=seed)
    # The network is frozen, so the gradient reaches the routers alone, through the gates of closed heads as well: the
    # hard gates have a straight-through gradient (see `routing.HardGate`).
    with _frozen(model), routers.routing():
        for step in range(options.steps):
            (batch,) = shared_batches(train[order.indices(step)], options.batch_size, task, runtime)
            with runtime.autocast("auto"):
                loss = mean_loss(losses_of(model, batch), batch.labels)
            (loss + penalty * routers.expected_share(train.shape[1])).backward()
            optimizer.step()
            optimizer.zero_grad()
    return routers


def _point(
    penalty: float, routers: HeadRouters, pruned: _StaticPruning, batches: Sequence[Batch], runtime: Runtime
) -> CostPoint:
    """Measure trained routers, and the static network beside them; the gates stay set to that of the latter."""
    # `routing` counts open heads anew from here, so the shares below are those of the held-out windows.
    with routers.routing():
        loss = evaluate(pruned.model, batches, runtime, "auto").loss
    # The static network is allowed what the routed one costs, routers included.
    flops = routers.flops_per_token(pruned.seq_len)
    beside = pruned.at_most(flops)
    static = None
    if beside is not None:
        static = _measured_static(pruned.model, beside, batches, pruned.seq_len, runtime)
    return CostPoint(
        penalty=penalty, open_share=routers.open_share(), flops_per_token=flops, loss=loss,
        perplexity=perplexity(loss), static=static,
    )  # fmt: skip


class _StaticPruning:
    """Networks pruned by the Taylor scores of the whole network, which are measured once."""

    def __init__(
        self, model: PlasticModel, head_map: HeadMap, probed: Sequence[Batch], seq_len: int, runtime: Runtime
    ) -> None:
        statistics = probe(model, probed, head_map, runtime.all_reduce)
        self.scores = registry.build("prune", "taylor")(statistics, np.random.default_rng(0))
        self.model, self.head_map, self.seq_len = model, head_map, seq_len

    def at_most(self, flops: float) -> HeadMap | None:
        """Return the map with the most heads that costs at most `flops` a token; each layer keeps one head.

        None if one head in each layer still costs more.
        """
        # One head more at a time: heads of layers differ in cost, so the number cannot be computed from `flops`.
        for count in range(self.head_map.active - len(self.head_map.grown) + 1):
            lowest = lowest_heads(
                self.scores, self.head_map, count, budget="global", min_heads_per_layer=1, protected=set()
            )
            smaller = self.head_map.without(lowest)
            if flops_per_token(self.model, smaller, self.seq_len) <= flops:
                return smaller
        return None


def _measured_static(
    model: PlasticModel, head_map: HeadMap, batches: Sequence[Batch], seq_len: int, runtime: Runtime
) -> StaticNetwork:  # fmt: skip
    """Measure a network with the heads of a map; its gates stay set to that map."""
    model.set_gates(head_map)
    loss = evaluate(model, batches, runtime, "auto").loss
    return StaticNetwork(
        heads=head_map.active, flops_per_token=flops_per_token(model, head_map, seq_len), loss=loss,
        perplexity=perplexity(loss),
    )  # fmt: skip


@torch.no_grad()
def _seconds_per_token(model: PlasticModel, routers: HeadRouters, batch: Batch) -> dict[str, float]:
    """Return the median time of forward passes without and with routers, in seconds a token."""

    def seconds() -> float:
        started = time.perf_counter()
        # A GPU computes asynchronously: reading a number waits for it.
        float(logits_of(model, batch)[0, 0, 0])
        return (time.perf_counter() - started) / batch.inputs.numel()

    times: dict[str, list[float]] = {"plain": [], "gated": []}
    # Both by turns: whatever else the machine does for a while then slows both alike.
    for _ in range(TIMED):
        times["plain"].append(seconds())
        with routers.routing():
            times["gated"].append(seconds())
    return {name: median(values) for name, values in times.items()}


@contextmanager
def _frozen(model: PlasticModel) -> Iterator[None]:
    """Put a model into evaluation mode without gradients for a while; put everything back, gates included."""
    was_training, gates = model.training, [gate.values for gate in model.gates]
    # Only what was trainable is made trainable again: a model may have had frozen parameters before.
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Dropout off and weights frozen: what changes between points is the gates alone.
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for gate, values in zip(model.gates, gates, strict=True):
            gate.values = values
        model.train(was_training)


def _load(name: str, data: DataSpec, runtime: Runtime) -> tuple[PlasticModel, HeadMap, TokenStore]:
    """Load a causal language model and a corpus under its tokenizer."""
    learned = trained_task(name)
    if learned != TASK:
        raise ModelError(
            f"model {name!r} learned {learned}: gates that open for each token need a causal language model."
        )
    tokens = prepare(data, tokenizer=data.tokenizer or name, vocab_size=None, special_tokens=False)
    model, head_map = load_plastic_model(ModelSpec(name=name, task=TASK), tokens.facts, data.seq_len)
    return model.to(runtime.device), head_map, tokens
