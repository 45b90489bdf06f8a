"""The network against its equations written out plainly, and every option against what it says that it does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raysweep.contracts import Facts
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.job.jobfile import check_job
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.compaction import compact
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.objective import label_losses
from raysweep.networks.pnn.config import PnnConfig
from raysweep.networks.pnn.network import PnnForMaskedLM
from raysweep.networks.pnn.supervision import step_weights
from raysweep.networks.pnn.trunk import step_code

VOCABULARY, WIDTH, HEADS, INNER, POSITIONS = 29, 12, 3, 20, 9
TRUNKS = ("refiner", "hierarchical", "layers", "shared_layer")
FORMS = ("linear", "uniform", "last", "geometric")


def build_pnn(seed: int = 0, **options: Any) -> Any:
    """Return a tiny network in fp64 and evaluation mode, every parameter of it clearly non-zero."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_steps": 3,
        "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "block_widths": (7, 10),
    }  # fmt: skip
    network = PnnForMaskedLM(PnnConfig(**sizes | options)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
            parameter.copy_(drawn + 1 if "norm.weight" in name else drawn)
    return network


def fresh(**options: Any) -> Any:
    """Return a network with its first weights, of an odd width."""
    torch.manual_seed(0)
    return PnnForMaskedLM(PnnConfig(vocab_size=50, hidden_size=96, intermediate_size=160, **options))


def some_ids(batch: int = 2, length: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def some_labels(batch: int = 2, length: int = 7) -> torch.Tensor:
    labels = some_ids(batch, length, seed=1)
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) < 0.5] = -100
    return labels


# The equations of pnn.md, section 1.


def attention(module: Any, hidden: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Attend as torch's MultiheadAttention does, its weights fused into one matrix."""
    projections = (module.q_proj, module.k_proj, module.v_proj)
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        reference.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
        reference.out_proj.load_state_dict(module.o_proj.state_dict())
    return reference(hidden, hidden, hidden, key_padding_mask=padding, need_weights=True)[0]


def norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(hidden, (WIDTH,), module.weight, module.bias, eps=1e-5)


def feed_forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    inner = hidden @ module.up.weight.T + module.up.bias
    return (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ module.down.weight.T + module.down.bias


def gate(module: Any, state: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    query = state @ module.query.weight.T + module.query.bias
    key = update @ module.key.weight.T + module.key.bias
    return 1 / (1 + torch.exp(-query * key / module.temperature))


def proposal(module: Any, hidden: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    mixed = norm(module.attention_norm, hidden + attention(module.attention, hidden, padding))
    return norm(module.feed_forward_norm, feed_forward(module.feed_forward, mixed))


def refined(network: Any, hidden: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    refiner = network.pnn.refiner
    update = proposal(refiner, hidden, padding)
    return hidden + gate(refiner.gate, hidden, update) * update


def refined_by_blocks(network: Any, hidden: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    refiner, total = network.pnn.refiner, torch.zeros_like(hidden)
    for block, own_gate in zip(refiner.blocks, refiner.block_gates, strict=True):
        update = proposal(block, hidden + total, padding)
        total = total + gate(own_gate, hidden, update) * update
    return hidden + gate(refiner.gate, hidden, total) * total


def encoded(layer: Any, hidden: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """BERT's layer, normalised after each residual."""
    mixed = norm(layer.attention_norm, hidden + attention(layer.attention, hidden, padding))
    return norm(layer.feed_forward_norm, mixed + feed_forward(layer.feed_forward, mixed))


def applied(network: Any, step: int, hidden: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    if network.config.trunk == "refiner":
        return refined(network, hidden, padding)
    if network.config.trunk == "hierarchical":
        return refined_by_blocks(network, hidden, padding)
    return encoded(
        network.pnn.layers[step] if network.config.trunk == "layers" else network.pnn.refiner, hidden, padding
    )


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_the_states_follow_the_equations_step_by_step_with_padding(trunk: str) -> None:
    network, ids = build_pnn(trunk=trunk), some_ids()
    seen = torch.ones_like(ids)
    seen[1, 4:] = 0
    table = network.pnn.embeddings
    state = norm(table.norm, table.tokens.weight[ids] + table.positions.weight[: ids.shape[1]])
    states = network.pnn.states(ids, seen)
    assert len(states) == 4 and torch.allclose(states[0], state)
    for step, found in enumerate(states[1:]):
        state = applied(network, step, state, seen == 0)
        assert torch.allclose(found[seen == 1], state[seen == 1], atol=1e-10), step
    logits = network(ids, attention_mask=seen).logits
    assert torch.allclose(logits[seen == 1], (state @ network.decoder.weight.T + network.decoder.bias)[seen == 1])


@torch.no_grad()
def test_segments_are_added_to_the_embedding_and_padding_changes_nothing_elsewhere() -> None:
    network, ids = build_pnn(type_vocab_size=2), some_ids()
    table, segments = network.pnn.embeddings, torch.tensor([0, 0, 1, 1, 0, 1, 1])
    plain = table.tokens.weight[ids] + table.positions.weight[:7]
    first = network.pnn.states(ids, None, segments.expand(2, -1))[0]
    assert torch.allclose(first, norm(table.norm, plain + table.segments.weight[segments]))
    assert torch.allclose(network.pnn.states(ids)[0], norm(table.norm, plain + table.segments.weight[0]))
    padded, seen = functional.pad(ids, (0, 2), value=5), functional.pad(torch.ones_like(ids), (0, 2))
    assert torch.allclose(network(padded, attention_mask=seen).logits[:, :7], network(ids).logits)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_each_part_is_called_exactly_once_a_step(trunk: str) -> None:
    network = build_pnn(trunk=trunk)
    calls: dict[str, int] = {}
    parts = ("attention", "attention_norm", "feed_forward", "feed_forward_norm", "gate")
    for name, module in network.named_modules():
        if name.split(".")[-1] in parts or ".block_gates." in name:
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    network(some_ids())
    assert len(calls) >= 4 and set(calls.values()) == {1 if trunk == "layers" else 3}


# Steps.


@pytest.mark.parametrize("trunk", ["refiner", "hierarchical", "shared_layer"])
@torch.no_grad()
def test_a_shared_trunk_takes_any_number_of_steps_whatever_it_was_built_for(trunk: str) -> None:
    network, ids = build_pnn(trunk=trunk), some_ids()
    states = network.pnn.states(ids, steps=7)
    assert len(states) == 8
    for steps in range(1, 8):
        fewer = network.pnn.states(ids, steps=steps)
        assert len(fewer) == steps + 1 and torch.equal(fewer[-1], states[steps])
        assert torch.equal(network(ids, num_steps=steps).logits, network.predict(states[steps]))
    assert torch.equal(network(ids).logits, network.predict(states[3]))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_any_number_of_steps_can_be_trained(trunk: str, steps: int) -> None:
    network, ids = build_pnn(trunk=trunk, num_steps=steps).train(), some_ids()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        losses.append(float(take_step(network, ids, optimizer)))
    assert losses[-1] < losses[0] - 0.2
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def take_step(network: Any, ids: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss = network.training_losses(ids, ids.flatten()).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_no_step_at_all_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match="num_steps = 0: a network has at least 1 step"):
        PnnConfig(num_steps=0)
    for network in (build_pnn(), build_pnn(trunk="layers")):
        with pytest.raises(ModelError, match="num_steps = 0: a network takes at least 1 step"):
            network(some_ids(), num_steps=0)
    with pytest.raises(ModelError, match="num_steps = 4: a trunk of layers takes no more than its 3"):
        network.pnn.states(some_ids(), steps=4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 30])
def test_the_weights_of_the_steps_sum_to_1(form: Any, steps: int) -> None:
    weights = step_weights(form, steps)
    assert len(weights) == steps and math.isclose(sum(weights), 1) and min(weights) >= 0


def test_the_weights_of_the_steps_are_the_published_ones_and_generalise_them() -> None:
    assert step_weights("linear", 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert step_weights("linear", 2) == pytest.approx([1 / 3, 2 / 3])
    assert step_weights("uniform", 5) == pytest.approx([0.2] * 5)
    assert step_weights("last", 3) == [0.0, 0.0, 1.0]
    assert step_weights("geometric", 4) == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_what_training_lowers_is_the_weighted_loss_of_every_step_but_the_embedding(trunk: str, form: Any) -> None:
    network, ids, labels = build_pnn(trunk=trunk, step_weights=form, num_steps=3), some_ids(), some_labels()
    states = network.pnn.states(ids)
    weighted = (
        weight * label_losses(network.decoder(state), labels)
        for weight, state in zip(step_weights(form, 3), states[1:], strict=True)
    )
    expected = sum(weighted, torch.zeros(()))
    everywhere = network.training_losses(ids, labels.flatten())
    assert torch.allclose(everywhere, expected.flatten())
    at = (labels.flatten() != -100).nonzero().flatten()
    assert torch.allclose(network.training_losses(ids, labels.flatten()[at], positions=at), expected.flatten()[at])


# First weights.


def root_mean_square(states: torch.Tensor) -> float:
    return float(states.detach().square().mean().sqrt())


@pytest.fixture(scope="module")
def published() -> Any:
    """The published network with a small vocabulary, which nothing here depends on."""
    torch.manual_seed(0)
    return PnnForMaskedLM(PnnConfig(vocab_size=500)).eval()


@torch.no_grad()
def test_first_weights_are_those_of_the_published_code(published: Any) -> None:
    refiner = published.pnn.refiner
    assert float(refiner.feed_forward.down.weight.std()) == pytest.approx(0.02, rel=0.01)
    projections = (refiner.attention.q_proj, refiner.attention.k_proj, refiner.attention.v_proj)
    fused = torch.cat([projection.weight for projection in projections])
    assert float(fused.std()) == pytest.approx(0.0255, abs=5e-5)
    assert float(fused.abs().max()) <= math.sqrt(6 / (4 * 768))  # uniform, Xavier
    linears = [module for module in published.modules() if isinstance(module, nn.Linear)]
    assert not any(linear.bias.any() for linear in linears)
    assert float(refiner.gate.temperature) == pytest.approx(math.sqrt(768), abs=1e-4)


@torch.no_grad()
def test_the_state_grows_from_step_to_step_and_the_gates_begin_at_a_half(published: Any) -> None:
    ids = torch.randint(500, (4, 128), generator=torch.Generator().manual_seed(0))
    gates = []
    published.pnn.refiner.gate.register_forward_hook(lambda module, inputs, output: gates.append(output))
    states = published.pnn.states(ids)
    assert [root_mean_square(state) for state in states] == pytest.approx([0.99, 1.11, 1.39, 1.73, 2.11], abs=0.015)
    assert root_mean_square(states[1] - states[0]) == pytest.approx(0.5, abs=0.01)
    assert float(gates[0].mean()) == pytest.approx(0.5, abs=1e-3) and 0.002 < float(gates[0].std()) < 0.006
    assert float((gates[0] > 0.5).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("trunk", ["refiner", "hierarchical"])
def test_init_zero_begins_as_the_embedding_alone_for_any_number_of_steps(trunk: str) -> None:
    network = fresh(trunk=trunk, init="zero", block_widths=(50, 70))
    states = network.pnn.states(some_ids(), steps=5)
    assert all(torch.equal(state, states[0]) for state in states[1:])


def gradient_norms(network: Any, training: bool = True) -> dict[str, float]:
    network.zero_grad()
    ids = some_ids()
    network.training_losses(ids, ids.flatten()).mean().backward()
    return {name: float(parameter.grad.norm()) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("trunk", ["refiner", "hierarchical"])
def test_init_zero_learns_from_the_first_step_on_and_its_gradients_are_no_larger_than_others(trunk: str) -> None:
    options = {"trunk": trunk, "block_widths": (50, 70)}
    network, bound = fresh(init="zero", **options), gradient_norms(fresh(**options))
    first = gradient_norms(network)
    assert all(value > 1e-4 for name, value in first.items() if name.endswith("feed_forward_norm.weight"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    optimizer.step()
    second = gradient_norms(network)
    assert all(second[name] > 0 for name in second if ".refiner." in name and "k_proj.bias" not in name)
    largest = max(value for name, value in bound.items() if ".refiner." in name)
    for found in (first, second):
        assert max(value for name, value in found.items() if ".refiner." in name) < 3 * largest


def test_zeroing_the_matrix_before_the_norm_instead_would_blow_the_gradients_up() -> None:
    """What `init: zero` avoids: a norm of variance 0 scales gradients by up to 1 / sqrt(eps)."""
    network = fresh()
    plain = gradient_norms(network)["pnn.refiner.feed_forward.down.weight"]
    with torch.no_grad():
        network.pnn.refiner.feed_forward.down.weight.zero_()
    assert gradient_norms(network)["pnn.refiner.feed_forward.down.weight"] > 5 * plain


# Gates.


@pytest.mark.parametrize(
    ("options", "factor"),
    [({"gate": "none"}, 1.0), ({"gate": "constant", "gate_value": 0.3}, 0.3), ({"gate": "scalar"}, 1 / (1 + math.e))],
    ids=str,
)
@torch.no_grad()
def test_a_gate_that_looks_at_nothing_scales_every_update_alike(options: dict[str, Any], factor: float) -> None:
    network, ids = build_pnn(**options), some_ids()
    if options["gate"] == "scalar":
        assert torch.allclose(fresh(gate="scalar").pnn.refiner.gate.logit, torch.zeros(()))
        network.pnn.refiner.gate.logit.fill_(-1)
    state = network.pnn.states(ids)[0]
    for found in network.pnn.states(ids)[1:]:
        state = state + factor * proposal(network.pnn.refiner, state, torch.zeros_like(ids, dtype=torch.bool))
        assert torch.allclose(found, state)


def test_a_scalar_gate_is_learnt_and_a_constant_one_is_not() -> None:
    learnt = gradient_norms(build_pnn(gate="scalar"))
    assert learnt["pnn.refiner.gate.logit"] > 0
    assert not any("gate" in name for name in gradient_norms(build_pnn(gate="constant")))


@pytest.mark.parametrize("raw", [-1e4, -50.0, 0.0, 1e4])
def test_the_temperature_stays_positive_and_the_gate_a_number_wherever_training_takes_it(raw: float) -> None:
    network = fresh(num_attention_heads=4)
    gate = network.pnn.refiner.gate
    with torch.no_grad():
        gate.raw_temperature.fill_(raw)
    assert float(gate.temperature.detach()) > 0
    assert all(math.isfinite(value) for value in gradient_norms(network).values())
    zeros = torch.zeros(1, 2, 96)
    assert torch.equal(gate(zeros, zeros), torch.full_like(zeros, 0.5))


def test_an_optimizer_that_only_wants_the_temperature_down_does_not_get_it_below_zero() -> None:
    gate = fresh(num_attention_heads=4).pnn.refiner.gate
    optimizer = torch.optim.AdamW(gate.parameters(), lr=1.0, weight_decay=0.0)
    for _ in range(100):
        gate.temperature.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0 < float(gate.temperature.detach()) < 0.01


# Options.


@torch.no_grad()
def test_a_final_norm_makes_predictions_independent_of_the_size_of_a_state() -> None:
    state = build_pnn().pnn.states(some_ids())[-1]
    network = build_pnn(final_norm=True)
    assert torch.allclose(network.predict(7 * state), network.predict(state), atol=1e-4)
    expected = network.decoder(norm(network.final_norm, state))
    assert torch.allclose(network.predict(state), expected)
    plain = build_pnn()
    assert torch.allclose(plain.predict(state), plain.decoder(state))


def read_at_each_step(network: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the states, and what the attention read at each step."""
    read: list[torch.Tensor] = []
    network.pnn.refiner.attention.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    return network.pnn.states(ids), read


@torch.no_grad()
def test_injection_adds_the_embedding_to_what_is_read_and_not_to_the_state() -> None:
    network, ids = build_pnn(input_injection=True), some_ids()
    states, read = read_at_each_step(network, ids)
    assert all(torch.allclose(one, state + states[0]) for one, state in zip(read, states, strict=False))
    update = proposal(network.pnn.refiner, 2 * states[0], torch.zeros_like(ids, dtype=torch.bool))
    assert torch.allclose(states[1], states[0] + gate(network.pnn.refiner.gate, states[0], update) * update)


@torch.no_grad()
def test_a_step_embedding_tells_the_steps_apart() -> None:
    network, ids = build_pnn(step_embedding=True), some_ids()
    states, read = read_at_each_step(network, ids)
    for step, (one, state) in enumerate(zip(read, states, strict=False), start=1):
        code = torch.zeros(WIDTH, dtype=torch.float64)
        for pair in range(WIDTH // 2):
            angle = step / 10_000 ** (2 * pair / WIDTH)
            code[2 * pair], code[2 * pair + 1] = math.sin(angle), math.cos(angle)
        assert torch.allclose(one - state, code.expand_as(state), atol=1e-6)
    assert step_code(2, 7).shape == (7,)


def test_random_depth_draws_every_depth_of_training_alike_and_leaves_evaluation_alone() -> None:
    network, ids = build_pnn(random_depth=True), some_ids()
    calls: list[int] = []
    network.pnn.refiner.register_forward_hook(lambda *_: calls.append(1))

    def depth(seed: int) -> int:
        calls.clear()
        network.begin_step(seed)
        network.training_losses(ids, ids.flatten())
        return len(calls)

    with torch.no_grad():
        depths = [depth(seed) for seed in range(200)]
        assert depths == [depth(seed) for seed in range(200)]
        assert [depths.count(steps) > 20 for steps in range(1, 6)] == [True] * 5 and set(depths) == set(range(1, 6))
        calls.clear()
        network(ids)
        assert len(calls) == 3
        plain = build_pnn()
        plain.begin_step(5)
        assert torch.equal(plain.training_losses(ids, ids.flatten()), plain.training_losses(ids, ids.flatten()))


def test_dropout_acts_in_training_alone_on_attention_weights_and_in_every_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def recorded(*arguments: Any, dropout: float, **options: Any) -> Any:
        rates.append(dropout)
        return attend(*arguments, dropout=dropout, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", recorded)
    network, ids = build_pnn(dropout=0.4), some_ids()
    dropped = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert {name.removeprefix("pnn.") for name in dropped} == {
        "embeddings.dropout", "refiner.dropout", "refiner.feed_forward.dropout", "refiner.feed_forward.inner_dropout",
    }  # fmt: skip
    assert set(dropped.values()) == {0.4}
    assert torch.equal(network(ids).logits, network(ids).logits) and set(rates) == {0.0}
    rates.clear()
    network.train()
    assert not torch.equal(network(ids).logits, network(ids).logits) and set(rates) == {0.4}
    assert torch.equal(build_pnn().train()(ids).logits, build_pnn()(ids).logits)


@pytest.mark.parametrize("trunk", ["refiner", "layers"])
@torch.no_grad()
def test_a_head_mask_by_step_closes_heads_at_its_step_and_its_last_row_goes_on(trunk: str) -> None:
    ids, rows = some_ids(), [[1.0, 0.0, 1.0], [0.0, 1.0, 0.5]]
    masked, state = build_pnn(trunk=trunk, step_head_mask=rows), build_pnn(trunk=trunk).pnn.states(ids)[0]
    for step, found in enumerate(masked.pnn.states(ids)[1:]):
        plain = build_pnn(trunk=trunk)
        for module in plain.modules():
            if type(module).__name__ == "Attention":
                columns = module.o_proj.weight.unflatten(1, (HEADS, WIDTH // HEADS))
                columns *= torch.tensor(rows[min(step, 1)], dtype=torch.float64)[:, None]
        state = applied(plain, step, state, torch.zeros_like(ids, dtype=torch.bool))
        assert torch.allclose(found, state), step


def test_heads_that_differ_from_step_to_step_are_never_taken_out() -> None:
    network, some = build_pnn(step_head_mask=[[1.0, 0.0, 1.0]]), HeadMap.full(1, HEADS).without([(0, 1)])
    with pytest.raises(ModelError, match="use the dense format"):
        compact(network, registry.build("models", "pnn"), some)
    smaller = compact(build_pnn(), registry.build("models", "pnn"), some)
    assert smaller.pnn.refiner.attention.o_proj.in_features == WIDTH - WIDTH // HEADS


# Checkpoints.


def saved(folder: Path, **options: Any) -> Any:
    network = build_pnn(**options).float()
    network.save_pretrained(folder)
    return network


def loaded(folder: Path) -> Any:
    spec = ModelSpec(name=str(folder))
    return build_network(spec, Facts(vocab_size=VOCABULARY), seq_len=POSITIONS, seed=0)[0].eval()


@pytest.mark.parametrize(
    "options",
    [
        *({"trunk": trunk} for trunk in TRUNKS),
        {"tie_word_embeddings": True, "gate": "scalar", "final_norm": True, "step_weights": "ponder"},
        {"step_head_mask": [[1.0, 0.0, 1.0]], "input_injection": True, "step_embedding": True, "num_steps": 5},
    ],
    ids=str,
)
def test_a_saved_network_is_loaded_as_it_was(options: dict[str, Any], tmp_path: Path) -> None:
    network = saved(tmp_path, **options)
    again = loaded(tmp_path)
    weights = again.state_dict()
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(again(some_ids()).logits, network(some_ids()).logits)
    assert torch.equal(PnnForMaskedLM.from_pretrained(tmp_path)(some_ids()).logits, again(some_ids()).logits)


def edit_weights(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("key", ["pnn.refiner.gate.query.weight", "decoder.bias", "pnn.refiner.gate.raw_temperature"])
def test_a_checkpoint_that_lacks_a_weight_is_refused(key: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(ModelError, match=f"lacks weights: {key}"):
        loaded(tmp_path)


@pytest.mark.parametrize("key", ["pnn.refiner.gate.extra", "pnn.layers.3.attention.q_proj.weight", "exit_head.weight"])
def test_a_checkpoint_with_a_weight_too_many_is_refused(key: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({key: torch.zeros(2)}))
    with pytest.raises(ModelError, match=f"has no place for: {key}"):
        loaded(tmp_path)


def test_a_checkpoint_of_another_gate_is_refused_and_a_classifier_may_leave_the_vocabulary_behind(
    tmp_path: Path,
) -> None:
    saved(tmp_path)
    facts = Facts(vocab_size=VOCABULARY, num_classes=4)
    spec = ModelSpec(name=str(tmp_path), task="sequence_classification")
    classifier, _ = build_network(spec, facts, seq_len=POSITIONS, seed=0)
    assert classifier.classifier.out_features == 4
    config = PnnConfig.from_pretrained(tmp_path)
    config.gate = "none"
    config.save_pretrained(tmp_path)
    for fitting in (spec, ModelSpec(name=str(tmp_path))):
        with pytest.raises(ModelError, match=r"has no place for: pnn\.refiner\.gate"):
            build_network(fitting, facts, seq_len=POSITIONS, seed=0)


# What a job may say.


def faults_of(**model: Any) -> str:
    job = {"name": "j", "model": {"name": "pnn-nano", **model}, "cycle": {"baseline": {"steps": 1, "lr": 1e-3}}}
    with pytest.raises(Exception) as caught:
        check_job(job, "job.yaml")
    assert getattr(caught.value, "exit_code", None) == 2
    return str(caught.value)


def test_every_fault_of_a_job_is_named_with_its_key_and_what_is_known() -> None:
    assert "job.yaml: model.num_steps = 0: must be greater than or equal to 1" in faults_of(num_steps=0)
    known = "'query_key', 'constant', 'scalar' or 'none'"
    assert f"job.yaml: model.gate = 'query-key': must be {known}" in faults_of(gate="query-key")
    assert "model.steps = 3: unknown key: no 'steps'. Did you mean 'num_steps'?" in faults_of(steps=3)
    several = faults_of(trunk="stack", dropout=1.0)
    assert "model.trunk = 'stack'" in several and "model.dropout = 1.0" in several


def test_forms_that_do_not_go_together_are_refused_in_a_job_and_in_python() -> None:
    pairs: list[tuple[dict[str, Any], str]] = [
        (
            {"trunk": "layers", "gate": "none"},
            "gate 'none' needs a refiner: a trunk of 'layers' has no gate. Leave gate out",
        ),
        ({"trunk": "layers", "init": "zero"}, "init 'zero' needs a refiner"),
        ({"trunk": "shared_layer", "init": "zero"}, "init 'zero' needs a refiner"),
        ({"trunk": "layers", "random_depth": True}, "random_depth is for a module that is applied again"),
    ]
    for options, said in pairs:
        assert said in faults_of(**options)
        with pytest.raises(ModelError, match=said):
            PnnConfig(**options)
    wrong: dict[str, Any] = {"gate": "key"}
    with pytest.raises(ModelError, match="gate = 'key': no 'key'"):
        PnnConfig(**wrong)
    for rows in ([], [[1.0, 0.0]], [[1.0] * 12, [1.0] * 11]):
        with pytest.raises(ModelError, match="each of 12 numbers"):
            PnnConfig(step_head_mask=rows)
