"""Training of PNN: a plain reference agrees, ranks and resumed runs agree, and nothing is drawn from global state."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import cpu, run_all
from support.jobs import quick_plan
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from raysweep.contracts import Batch, Facts, Task
from raysweep.contracts.events import Question, StepLogged
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.job.jobfile import check_job
from raysweep.networks.models.pnn import Family
from raysweep.networks.models.pnn_vision import Family as VisionFamily
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import NO_LABEL, training_losses
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.pnn.config import PnnConfig, PnnVisionConfig
from raysweep.networks.pnn.network import PnnForImageClassification, PnnForMaskedLM
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.data.trial_data import trial_data, trial_task
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.phases import run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore
from raysweep.trial.training.loop import Schedule, Training

VOCABULARY, LENGTH, MASK = 60, 16, 59
TASK: Task = registry.load("tasks", "masked_lm")(
    facts=Facts(vocab_size=VOCABULARY, mask_token=MASK, special_tokens=(0, 1, MASK))
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_steps": 3,
    "max_position_embeddings": LENGTH,
}  # fmt: skip


def network_of(**options: Any) -> Any:
    """Return a network whose every parameter is random, norms and biases too."""
    torch.manual_seed(0)
    network = PnnForMaskedLM(PnnConfig(**SHAPE | options, attn_implementation="sdpa"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def state_of(weight_decay: float = 0.01, **options: Any) -> TrialState:
    network = network_of(**options)
    model = PlasticModel(network, Family().sites(network))
    optimizer = SliceAdamW(dict(network.named_parameters()), weight_decay, network.undecayed())
    return TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))


def windows(count: int = 40) -> np.ndarray:
    """Return windows with unequal shares of special tokens, so that they have unequally many labels."""
    generator = np.random.default_rng(4)
    tokens = generator.integers(2, VOCABULARY - 1, size=(count, LENGTH))
    special = generator.random((count, LENGTH)) < generator.uniform(0, 0.9, size=(count, 1))
    return np.where(special, 1, tokens).astype(np.uint16)


def training_of(state: TrialState, *, steps: int = 6, batch_size: int = 8, **options: Any) -> Training:
    settings = {"accumulation": 1, "clip_norm": 1.0, "precision": "fp32", "compile": False} | options.pop(
        "training", {}
    )
    order = BatchOrder(num_windows=40, batch_size=batch_size, seed=options.pop("seed", 8))
    schedule = Schedule(steps=steps, lr=3e-3, warmup_fraction=0.2)
    return Training(state=state, schedule=schedule, examples=windows(), task=TASK, order=order, training=settings,
                    runtime=cpu(), **options)  # fmt: skip


def some_batch(count: int = 6) -> Batch:
    return TASK.batch(windows()[:count], range(count))


# A plain reference.


class PlainRefiner(nn.Module):
    """The published refiner, head and loss (pnn.md, sections 1 and 2), of torch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        width, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, SHAPE["num_attention_heads"], batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.tau = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(width, VOCABULARY)

    def copy(self, network: Any) -> PlainRefiner:
        """Take the weights of ours."""
        embeddings, refiner = network.pnn.embeddings, network.pnn.refiner
        attention = refiner.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        pairs = [
            (self.tokens, embeddings.tokens), (self.positions, embeddings.positions), (self.norms[0], embeddings.norm),
            (self.norms[1], refiner.attention_norm), (self.norms[2], refiner.feed_forward_norm),
            (self.feed_forward[0], refiner.feed_forward.up), (self.feed_forward[2], refiner.feed_forward.down),
            (self.query, refiner.gate.query), (self.key, refiner.gate.key),
            (self.attention.out_proj, attention.o_proj), (self.head, network.decoder),
        ]  # fmt: skip
        for mine, other in pairs:
            mine.load_state_dict(other.state_dict())
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat([part.weight for part in projections]))
            self.attention.in_proj_bias.copy_(torch.cat([part.bias for part in projections]))
            self.tau.copy_(refiner.gate.temperature)
        return self

    def states(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        embedded = self.norms[0](self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1])))
        states = [embedded]
        for _ in range(SHAPE["num_steps"]):
            hidden = states[-1]
            mixed = self.norms[1](hidden + self.attention(hidden, hidden, hidden)[0])
            proposed = self.norms[2](self.feed_forward(mixed))
            gate = torch.sigmoid(self.query(hidden) * self.key(proposed) / self.tau)
            states.append(hidden + gate * proposed)
        return states

    def loss(self, batch: Batch) -> torch.Tensor:
        """All positions have logits, as published; the mean over labels."""
        steps = SHAPE["num_steps"]
        return torch.stack([
            2 * step / (steps * (steps + 1)) * functional.cross_entropy(
                self.head(state).flatten(0, 1), batch.labels.flatten(), ignore_index=NO_LABEL
            )
            for step, state in enumerate(self.states(batch.inputs)[1:], 1)
        ]).sum()  # fmt: skip


def test_states_loss_and_gradients_are_those_of_a_plain_reference() -> None:
    network, batch = network_of(), some_batch()
    model, plain = PlasticModel(network, Family().sites(network)), PlainRefiner().copy(network)
    for ours, theirs in zip(network.pnn.states(batch.inputs), plain.states(batch.inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    losses = training_losses(model, batch)
    ours, theirs = losses.sum() / (batch.labels != NO_LABEL).sum(), plain.loss(batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours.backward()
    theirs.backward()
    refiner = network.pnn.refiner
    for mine, other in ((network.pnn.embeddings.tokens, plain.tokens), (network.decoder, plain.head),
                        (refiner.feed_forward.up, plain.feed_forward[0]), (refiner.gate.key, plain.key),
                        (refiner.attention.o_proj, plain.attention.out_proj)):  # fmt: skip
        torch.testing.assert_close(mine.weight.grad, other.weight.grad, rtol=0, atol=1e-5)
    parts = (refiner.attention.q_proj, refiner.attention.k_proj, refiner.attention.v_proj)
    fused = torch.cat([part.weight.grad for part in parts])
    torch.testing.assert_close(fused, plain.attention.in_proj_weight.grad, rtol=0, atol=1e-5)


class Operations(TorchDispatchMode):
    """Notes the names and the shapes of the results of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple) else result
        self.seen.append((str(function), tuple(first.shape) if isinstance(first, torch.Tensor) else ()))
        return result


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_is_fused_and_its_weights_stand_nowhere(precision: str) -> None:
    training = training_of(state_of(), training={"precision": precision}, batch_size=5)
    with Operations() as operations:
        training._accumulate(training.state.model, 0)
    names = [name for name, _ in operations.seen]
    assert len([name for name in names if "scaled_dot_product_flash_attention" in name and "backward" not in name]) == 3
    assert all(shape[-2:] != (LENGTH, LENGTH) for _, shape in operations.seen)


def test_bf16_computes_in_half_the_bits_and_takes_the_loss_in_all_of_them() -> None:
    model, batch = state_of().model, some_batch()
    logits: list[torch.dtype] = []
    model.decoder.register_forward_hook(lambda _, __, out: logits.append(out.dtype))
    exact = training_losses(model, batch)
    with cpu().autocast("bf16"):
        rounded = training_losses(model, batch)
    assert set(logits[:3]) == {torch.float32} and set(logits[3:]) == {torch.bfloat16}
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).detach().abs().max()) < 0.1
    rounded.sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_training_in_bf16_learns_as_in_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        curve = training_of(state_of(), steps=40, training={"precision": precision}).run()
        losses.append([point["loss"] for point in curve])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1][-1] < losses[1][0] - 0.2


# Weight decay and the learning rate.


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"type_vocab_size": 2}, {"gate": "scalar"}])
def test_norms_biases_embeddings_and_the_temperature_do_not_decay(options: dict[str, Any]) -> None:
    state = state_of(weight_decay=0.5, **options)
    before = {name: parameter.detach().clone() for name, parameter in state.model.network.named_parameters()}
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step(0.1)
    moved = set()
    for name, parameter in state.model.network.named_parameters():
        if not torch.equal(parameter, before[name]):
            torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.5))
            moved.add(name)
    refiner = "pnn.refiner."
    linears = {*(f"attention.{part}_proj" for part in "qkvo"), "feed_forward.up", "feed_forward.down"}
    linears |= set() if options.get("gate") == "scalar" else {"gate.query", "gate.key"}
    decoder = set() if options.get("tie_word_embeddings") else {"decoder.weight"}
    assert moved == {f"{refiner}{name}.weight" for name in linears} | decoder


def test_an_image_network_decays_its_patches_and_neither_positions_nor_the_class_token() -> None:
    config = PnnVisionConfig(hidden_size=16, num_attention_heads=2, intermediate_size=8, image_size=4, patch_size=2,
                             num_channels=1)  # fmt: skip
    network = PnnForImageClassification(config)
    assert network.undecayed() == {"pnn.embeddings.positions.weight", "pnn.embeddings.class_token"}
    assert VisionFamily.tasks == ("image_classification",)


def test_the_networks_own_rule_reaches_the_optimizer_of_a_trial_and_other_families_keep_theirs() -> None:
    for model, embedding in (("pnn-nano", "pnn.embeddings.tokens.weight"), ("bert-nano", None)):
        plan = quick_plan(model__name=model)
        state = TrialState.first(plan, trial_data(plan).facts, cpu())
        decayed = {id(p) for group in state.optimizer.adamw.param_groups if group["weight_decay"]
                   for p in group["params"]}  # fmt: skip
        matrices = {name for name, p in state.model.network.named_parameters() if p.dim() >= 2}
        kept = {name for name, p in state.model.network.named_parameters() if id(p) in decayed}
        assert (embedding in matrices - kept) if embedding else (matrices == kept)


def test_a_cosine_falls_to_its_floor_exactly() -> None:
    """As published: 3e-4 to 1e-5."""
    some = Schedule(steps=20, lr=3e-4, warmup_fraction=0.2, min_lr_fraction=1 / 30)
    rates = [some.learning_rate(step) for step in range(21)]
    assert rates[:4] == pytest.approx([3e-4 / 4, 3e-4 / 2, 9e-4 / 4, 3e-4]) and rates[0] > 0
    assert rates[4:] == pytest.approx([1e-5 + 29e-5 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(17)])
    assert rates[12] == pytest.approx((3e-4 + 1e-5) / 2) and rates[20] == pytest.approx(1e-5)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))
    flat = Schedule(steps=5, lr=0.1, warmup_fraction=0.0, min_lr_fraction=1.0)
    assert [flat.learning_rate(step) for step in range(5)] == [0.1] * 5
    to_zero = Schedule(steps=20, lr=3e-4, warmup_fraction=0.2)
    assert to_zero.learning_rate(20) == pytest.approx(0, abs=1e-12)


def test_a_jobs_floor_reaches_every_step(tmp_path: Path) -> None:
    plan = quick_plan(model__name="pnn-nano", training__min_lr_fraction=0.5, cycle__cycles=1, cycle__baseline__steps=12)
    baseline = run_all(plan, tmp_path)[0]
    rates = {int(point["step"]): point["lr"] for point in baseline.curve}
    assert rates[12] == pytest.approx(3e-3 * (0.5 + 0.25 * (1 + math.cos(math.pi * 10 / 11))))


# What is drawn at random.


class KilledError(Exception):
    pass


def killed_and_resumed(after: int, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train until some step, put the state into a new model as a checkpoint would, and train on."""

    def kill(step: int) -> None:
        if step == after:
            raise KilledError

    first = training_of(state_of(**options), steps=13, between_steps=kill)
    with pytest.raises(KilledError):
        first.run()
    saved = copy.deepcopy(first.state.tensors())
    torch.manual_seed(99)  # what a new process would have is another
    second = training_of(state_of(**options), steps=13)
    second.state.load_tensors(saved)
    second.curve = list(first.curve)
    second.unlogged.copy_(first.unlogged)
    assert second.run(after)
    return second.state.tensors(), second.curve


@pytest.mark.parametrize(
    "options", [{"dropout": 0.1}, {"random_depth": True}, {"dropout": 0.3, "random_depth": True}, {}]
)
@pytest.mark.parametrize("after", [1, 11])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(options: dict[str, Any], after: int) -> None:
    whole = training_of(state_of(**options), steps=13)
    curve = whole.run()
    tensors, resumed_curve = killed_and_resumed(after, **options)
    assert resumed_curve == curve
    assert tensors.keys() == whole.state.tensors().keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in whole.state.tensors().items())


@pytest.mark.slow
def test_a_trial_with_dropout_killed_between_checkpoints_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    options = {"name": "pnn-nano", "dropout": 0.2, "random_depth": True}
    plan = quick_plan(model=options, cycle__cycles=1, cycle__learn__steps=12, scale__checkpoint_every_steps=5)
    expected = [record.outcome() for record in run_all(plan, tmp_path / "whole")]

    def kill(question: Question) -> Any:
        if isinstance(question, StepLogged) and question.phase == "learn":
            raise KilledError
        return cpu().ask_sweep(question)

    with pytest.raises(KilledError):
        list(run_trial(plan, replace(cpu(), ask_sweep=kill), PhaseStore(tmp_path / "killed")))
    assert list((tmp_path / "killed").glob("*.partial"))
    assert [record.outcome() for record in run_all(plan, tmp_path / "killed")] == expected


def test_dropout_differs_from_step_to_step_part_to_part_and_rank_to_rank_and_leaves_the_global_generator() -> None:
    seeds: list[int] = []

    class Spy(Runtime):
        number = 0

        @property
        def rank(self) -> int:
            return self.number

        @property
        def world_size(self) -> int:
            return 2

        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor * 2

        def wrap(self, module: nn.Module) -> nn.Module:
            return module

        def seeded(self, seed: int) -> Any:
            seeds.append(seed)
            return super().seeded(seed)

    class Second(Spy):
        number = 1

    for kind in (Spy, Second):
        training = training_of(state_of(dropout=0.1), steps=3, training={"accumulation": 2})
        training.runtime = kind(device=torch.device("cpu"))
        torch.manual_seed(5)
        before = torch.get_rng_state()
        training.run()
        assert torch.equal(torch.get_rng_state(), before)
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 2


def test_another_seed_drops_others_and_without_dropout_no_seed_matters() -> None:
    def weights(dropout: float, seed_of_masks: int) -> dict[str, torch.Tensor]:
        training = training_of(state_of(dropout=dropout))
        runtime = training.runtime

        class Shifted(Runtime):
            def seeded(self, seed: int) -> Any:
                return runtime.seeded(seed + seed_of_masks)

        training.runtime = Shifted(device=torch.device("cpu"))
        training.run()
        return training.state.tensors()

    for dropout, equal in ((0.0, True), (0.2, False)):
        one, other = weights(dropout, 0), weights(dropout, 1)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()) == equal


# Compiled.


@pytest.mark.slow
def test_compiled_training_is_training_with_heads_absent_and_fading_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler traces is run as it stands: generating code takes minutes, and rounds in other places."""
    compiler, compiled = torch.compile, []

    def traced(model: nn.Module, **options: Any) -> Any:
        compiled.append(options)
        return compiler(model, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    found = []
    for compile in (False, True):
        state = state_of()
        state.remove_heads([(0, 1), (0, 2)], None)
        state.add_heads([(0, 2)], cycle=1)
        state.initialise_new_heads([(0, 2)], registry.build("init", "small_random"), "key")
        state.refresh()
        training = training_of(state, training={"compile": compile})
        training.schedule = replace(training.schedule, gate_warmup_steps=2, gate_start=0.1)
        training.run()
        found.append(state.tensors())
    assert compiled == [{"fullgraph": True}]
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("model", "said"),
    [({"name": "gpt2-nano"}, "only networks of pnn are"), ({"name": "pnn-nano", "random_depth": True}, "is random")],
)
def test_what_cannot_be_compiled_is_refused_before_anything_starts(model: dict[str, Any], said: str) -> None:
    job = {"name": "j", "model": model, "training": {"compile": True}, "cycle": {"baseline": {"steps": 1, "lr": 0.1}}}
    with pytest.raises(ModelError, match=rf"training.compile: model .* cannot be compiled: .*{said}"):
        preflight(check_job(job, "j.yaml"))
    preflight(check_job(job | {"model": {"name": "pnn-nano"}}, "j.yaml"))


# Batches.


def test_no_gradient_is_left_over_at_the_end_of_an_epoch() -> None:
    """40 windows in batches of 12: the last batch of each epoch is filled up from the next, so every update is of
    exactly 12 windows, whatever their number; the published trainer carries a remainder over."""
    training = training_of(state_of(), steps=20, batch_size=12, training={"accumulation": 3})
    sizes: list[int] = []
    training.state.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    training.run()
    assert sizes == [4] * 3 * 20
    seen = np.concatenate([training.order.indices(step) for step in range(20)])
    assert np.bincount(seen, minlength=40).tolist() == [6] * 40
    assert all(parameter.grad is None for parameter in training.state.model.parameters())


@pytest.mark.parametrize("tokenizer", [{}, {"data__tokenizer": "wordpiece"}])
def test_windows_are_full_so_no_position_is_padding(tokenizer: dict[str, Any]) -> None:
    plan = quick_plan(model__name="pnn-nano", **tokenizer)
    data, task = trial_data(plan), trial_task(plan)
    assert float(np.mean(data.train == data.facts.pad_token)) == 0
    batch = task.batch(data.train[:8], range(8))
    assert data.facts.pad_token is not None
    assert batch.attention_mask is None and not (batch.inputs == data.facts.pad_token).any()


# Ranks.

RANKS = 2
RUNS: dict[str, dict[str, Any]] = {
    "even shares": {},
    "accumulated": {"training": {"accumulation": 2}},
    "random depth": {"random_depth": True, "training": {"accumulation": 2}},
    "ponder": {"step_weights": "ponder", "tie_word_embeddings": True},
}


def gradients_of(name: str) -> dict[str, Any]:
    """Return the gradient of one step on 16 windows, all ranks together, and this rank's labels and depth."""
    options = dict(RUNS[name])
    training = training_of(state_of(**{k: v for k, v in options.items() if k != "training"}), batch_size=16,
                           training=options.get("training", {}))  # fmt: skip
    rank, ranks = training.runtime.rank, training.runtime.world_size
    mine = training.order.indices(0, rank, ranks)
    batch = TASK.batch(training.examples[mine], training.order.seeds(0, rank, ranks).tolist())
    training._accumulate(training.runtime.wrap(training.state.model), 0)
    network: Any = training.state.model.network
    found = {n: p.grad for n, p in network.named_parameters()}
    return {"gradients": found, "labels": int((batch.labels != NO_LABEL).sum()), "depth": network._depth}


def in_two_processes(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
    )
    torch.save({name: gradients_of(name) for name in RUNS}, folder / f"rank-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_one_rank_and_two_have_the_same_gradients_whoever_has_how_many_labels(tmp_path: Path) -> None:
    spawn(in_two_processes, args=(tmp_path,), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(RANKS))
    for name in RUNS:
        alone = gradients_of(name)
        assert first[name]["labels"] != second[name]["labels"]
        assert first[name]["labels"] + second[name]["labels"] == alone["labels"]
        assert first[name]["depth"] == second[name]["depth"] == alone["depth"]
        for parameter, gradient in alone["gradients"].items():
            assert torch.equal(first[name]["gradients"][parameter], second[name]["gradients"][parameter])
            torch.testing.assert_close(
                first[name]["gradients"][parameter], gradient, rtol=0, atol=1e-5, msg=f"{name}: {parameter}"
            )
