"""What a Plastic Neural Network costs beside its baselines, and how large a baseline of the same cost is.

Arithmetic on networks without weights: parameters, and operations a token as networks/plasticity/accounting.py counts
them, with logits at the labelled positions alone. Each baseline has the size of the job's model: its width, heads and
vocabulary.
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
"""Options of the job's model that its baselines have too."""
MODEL, BERT = "this model", "BERT, 12 layers"
MATCHED = ("training_flops", "trunk")
"""What baselines are made equal in: training operations, and parameters without those of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one network."""

    parameters: int
    """All of them; tied ones count once."""
    vocabulary: int
    """Of the token embedding, and of the layer that predicts tokens with its bias."""
    trunk: int
    """Of what is applied step by step: neither embeddings nor what predicts."""
    forward_flops: float
    """Operations per token of an evaluation, which predicts from the last step."""
    training_flops: float
    """Operations per token of a training step: three forward passes, with a prediction from every step that counts."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """The baseline that comes closest to the model in one kind of cost."""

    baseline: str
    equal_in: str
    """A field of `Cost`."""
    num_steps: int
    intermediate_size: int
    off: float
    """Its cost over the model's, less 1."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    rows: dict[str, Cost]
    """The model, its other gates, its baselines."""
    matches: list[Match]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def efficiency(model: ModelSpec, seq_len: int) -> Efficiency:
    """Return what a model, its ablations and its baselines cost, and which baselines would cost as much.

    Raises:
        ModelError: the model is no from-scratch size of PNN.
    """
    if scratch_sizes().get(model.name) not in FAMILIES:
        sizes = [size for size, family in scratch_sizes().items() if family in FAMILIES]
        raise ModelError(f"model.name = {model.name!r} is no size of PNN: {known_names_hint(model.name, sizes)}")
    specs = {MODEL: model, **ablations(model), **baselines(model)}
    rows = {name: cost(spec, seq_len) for name, spec in specs.items()}
    return Efficiency(rows=rows, matches=list(_matches(model, seq_len, rows[MODEL])))


def cost(model: ModelSpec, seq_len: int) -> Cost:
    """Return what a network costs in windows of `seq_len` tokens."""
    skeleton: Any = build_skeleton(model, seq_len=seq_len)
    network, heads, tokens = skeleton.network, HeadMap.full(*skeleton.shape), positions(skeleton, seq_len)
    predicted = registry.load("tasks", task_of(model)).predicted
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
    """Return the model with every other gate; nothing for what has no gate."""
    if model.options.get("trunk", "refiner") not in ("refiner", "hierarchical"):
        return {}
    own = model.options.get("gate", "query_key")
    gates = [gate for gate in get_args(GateForm) if gate != own]
    return {f"gate {gate}": _changed(model, {**model.options, "gate": gate}) for gate in gates}


def baselines(model: ModelSpec) -> dict[str, ModelSpec]:
    """Return the stacks of layers that a model is compared with; all but BERT have its steps and feed-forward width."""
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
    """Find by the number of steps, and by the feed-forward width, what each baseline must have to cost as much."""
    shape = _shape(model)
    steps = shape.num_steps
    stacks = (
        ("layers, unshared", "layers", steps, "num_steps"),
        ("layers, unshared", "layers", steps, "intermediate_size"),
        ("1 layer", "layers", 1, "intermediate_size"),
        ("layer, shared", "shared_layer", steps, "num_steps"),
        ("layer, shared", "shared_layer", steps, "intermediate_size"),
    )
    for equal_in, (name, trunk, depth, varied) in itertools.product(MATCHED, stacks):
        sizes = {"num_steps": depth, "intermediate_size": shape.intermediate_size}
        costs = partial(_cost_of, model, seq_len, equal_in, varied, {"trunk": trunk, **sizes})
        number, wanted = _closest(costs, getattr(target, equal_in)), getattr(target, equal_in)
        if number is not None:
            yield Match(baseline=name, equal_in=equal_in, **{**sizes, varied: number}, off=costs(number) / wanted - 1)


def _cost_of(
    model: ModelSpec, seq_len: int, kind: str, varied: str, options: Mapping[str, Any], number: int
) -> float:  # fmt: skip
    """Return one kind of cost of a baseline with one of its options varied."""
    return float(getattr(cost(_baseline(model, **{**options, varied: number}), seq_len), kind))


def _closest(cost_at: Callable[[int], float], wanted: float) -> int | None:
    """Return the number from 1 on whose cost, linear in it, is nearest; None where the cost does not depend on it."""
    first, second = cost_at(1), cost_at(2)
    return None if first == second else max(1, round(1 + (wanted - first) / (second - first)))


def _shape(model: ModelSpec) -> Any:
    """Return the configuration of a model, for its sizes."""
    config: Any = build_skeleton(model, seq_len=1).network.config
    return config


def _baseline(model: ModelSpec, **options: Any) -> ModelSpec:
    kept = {option: model.options[option] for option in KEPT if option in model.options}
    return _changed(model, {**kept, **options})


def _changed(model: ModelSpec, options: dict[str, Any]) -> ModelSpec:
    return ModelSpec(name=model.name, task=model.task, **options)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
