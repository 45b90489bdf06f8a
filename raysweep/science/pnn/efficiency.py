"""Count what a Plastic Neural Network and its baselines cost, and how large a baseline of equal cost is.

Arithmetic on networks without weights: parameters, and operations a token as networks/plasticity/accounting.py counts
them, with logits at the labelled positions alone. Each baseline has the width, heads and vocabulary of the job's model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

from torch import nn

from raysweep.errors import ModelError, known_names_hint
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec
from raysweep.networks.configuration import task_of
from raysweep.networks.loading import build_skeleton
from raysweep.networks.plasticity.accounting import TRAINING_TO_FORWARD, flops_per_token, positions
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.pnn.forms import GateForm

FAMILIES = ("pnn", "pnn_vision")
KEPT = ("tie_word_embeddings", "type_vocab_size", "dropout")
"""Options of the job's model that its baselines take over."""
MODEL, BERT = "this model", "BERT, 12 layers"
MATCHED = ("training_flops", "trunk")
"""Costs in which baselines are made equal: training operations, and parameters without those of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one network."""

    parameters: int
    """All parameters; tied ones count once."""
    vocabulary: int
    """Parameters of the token embedding, and of the layer that predicts tokens with its bias."""
    trunk: int
    """Parameters of the layers that are applied step by step: neither embeddings nor the prediction head."""
    forward_flops: float
    """Operations per token of an evaluation, which predicts from the last step."""
    training_flops: float
    """Operations per token of a training step: three forward passes, with a prediction from every step that counts."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """The baseline that is closest to the model in one kind of cost."""

    baseline: str
    equal_in: str
    """The field of `Cost` that is matched."""
    num_steps: int
    intermediate_size: int
    off: float
    """Cost of the baseline over that of the model, minus 1: 0 is an exact match."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The costs of a model and of the networks that it is compared with."""

    rows: dict[str, Cost]
    """Name -> cost of the model, of the model with other gates, and of its baselines."""
    matches: list[Match]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def efficiency(model: ModelSpec, seq_len: int) -> Efficiency:
    """Return the costs of a model, its ablations and its baselines, and the baselines of equal cost.

    Args:
        seq_len: tokens in a window, which the cost of attention grows with.

    Raises:
        ModelError: the model is not a from-scratch size of PNN.
    """
    if scratch_sizes().get(model.name) not in FAMILIES:
        sizes = [size for size, family in scratch_sizes().items() if family in FAMILIES]
        raise ModelError(f"model.name = {model.name!r} is no size of PNN: {known_names_hint(model.name, sizes)}")
    specs = {MODEL: model, **ablations(model), **baselines(model)}
    rows = {name: cost(spec, seq_len) for name, spec in specs.items()}
    return Efficiency(rows=rows, matches=list(_matches(model, seq_len, rows[MODEL])))


def cost(model: ModelSpec, seq_len: int) -> Cost:
    """Return the cost of a network in windows of `seq_len` tokens."""
    # A skeleton lies on the meta device: it has shapes, and no memory or weights.
    skeleton: Any = build_skeleton(model, seq_len=seq_len)
    network, heads, tokens = skeleton.network, HeadMap.full(*skeleton.shape), positions(skeleton, seq_len)
    predicted = registry.load("tasks", task_of(model)).predicted
    # The decoder is tied to the token embedding where the job says so; a ModuleList counts a tied matrix once.
    embeddings = network.pnn.embeddings
    return Cost(
        parameters=_parameters(network),
        vocabulary=_parameters(nn.ModuleList(filter(None, [getattr(embeddings, "tokens", None), skeleton.decoder]))),
        trunk=_parameters(network.pnn) - _parameters(embeddings),
        forward_flops=flops_per_token(skeleton, heads, tokens, predicted=predicted),
        training_flops=TRAINING_TO_FORWARD
        * flops_per_token(skeleton, heads, tokens, predicted=predicted, training=True),
    )


def ablations(model: ModelSpec) -> dict[str, ModelSpec]:
    """Return the model with every other gate, by name; none for a model without a gate."""
    # Stacks of layers have no gate: `gate` is no option of theirs.
    if model.options.get("trunk", "refiner") not in ("refiner", "hierarchical"):
        return {}
    # The default of a PNN, if the job does not say.
    own = model.options.get("gate", "query_key")
    gates = [gate for gate in get_args(GateForm) if gate != own]
    return {f"gate {gate}": _changed(model, {**model.options, "gate": gate}) for gate in gates}


def baselines(model: ModelSpec) -> dict[str, ModelSpec]:
    """Return the stacks of layers that a model is compared with, by name.

    All but BERT have the model's feed-forward width; BERT has the usual one, four times the width of the state.
    """
    shape = _shape(model)
    steps, width = shape.num_steps, shape.intermediate_size
    return {
        BERT: _baseline(model, trunk="layers", num_steps=12, intermediate_size=4 * shape.hidden_size),
        f"{steps} layers, unshared": _baseline(model, trunk="layers", num_steps=steps, intermediate_size=width),
        f"1 layer, {steps} times (ALBERT)": _baseline(
            model, trunk="shared_layer", num_steps=steps, intermediate_size=width
        ),
        "1 layer": _baseline(model, trunk="layers", num_steps=1, intermediate_size=width),
    }


def _matches(model: ModelSpec, seq_len: int, target: Cost) -> Iterable[Match]:
    """Yield the baselines of equal cost, varied in their number of steps or in their feed-forward width."""
    shape = _shape(model)
    steps = shape.num_steps
    # Name, trunk, steps, and the option that is varied.
    stacks = (
        ("layers, unshared", "layers", steps, "num_steps"),
        ("layers, unshared", "layers", steps, "intermediate_size"),
        ("1 layer", "layers", 1, "intermediate_size"),
        ("layer, shared", "shared_layer", steps, "num_steps"),
        ("layer, shared", "shared_layer", steps, "intermediate_size"),
    )
    # A baseline of the model's depth is made wider, one of its width deeper; a single layer can only be made wider.
    for equal_in, (name, trunk, depth, varied) in itertools.product(MATCHED, stacks):
        sizes = {"num_steps": depth, "intermediate_size": shape.intermediate_size}
        costs = partial(_cost_of, model, seq_len, equal_in, varied, {"trunk": trunk, **sizes})
        # `costs` depends on the varied option alone; all others are bound.
        number, wanted = _closest(costs, getattr(target, equal_in)), getattr(target, equal_in)
        # The trunk of a shared layer has the same parameters at any number of steps: nothing to match there.
        if number is not None:
            yield Match(baseline=name, equal_in=equal_in, **{**sizes, varied: number}, off=costs(number) / wanted - 1)


def _cost_of(
    model: ModelSpec, seq_len: int, kind: str, varied: str, options: Mapping[str, Any], number: int
) -> float:  # fmt: skip
    """Return one kind of cost of a baseline with one of its options varied."""
    return float(getattr(cost(_baseline(model, **{**options, varied: number}), seq_len), kind))


def _closest(cost_at: Callable[[int], float], wanted: float) -> int | None:
    """Return the number, at least 1, whose cost is nearest to the wanted one; None if all have the same cost."""
    # Costs are linear in the number of steps and in the feed-forward width: two points determine the line.
    first, second = cost_at(1), cost_at(2)
    return None if first == second else max(1, round(1 + (wanted - first) / (second - first)))


def _shape(model: ModelSpec) -> Any:
    """Return the configuration of a model, which holds its sizes."""
    # The length does not matter for sizes: a length of 1 has the smallest table of positions.
    config: Any = build_skeleton(model, seq_len=1).network.config
    return config


def _baseline(model: ModelSpec, **options: Any) -> ModelSpec:
    """Return a baseline: the model's size with other options, but for those in KEPT."""
    kept = {option: model.options[option] for option in KEPT if option in model.options}
    return _changed(model, {**kept, **options})


def _changed(model: ModelSpec, options: dict[str, Any]) -> ModelSpec:
    return ModelSpec(name=model.name, task=model.task, **options)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
