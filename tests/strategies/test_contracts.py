"""What every strategy, family and sampler must do, whichever file it stands in: a new file joins in by itself."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from raysweep import contracts
from raysweep.contracts import (
    GO,
    HEAD_STATISTICS,
    HEAD_STATISTICS_ON_DEMAND,
    Array,
    Decision,
    Facts,
    HeadStatistics,
    Report,
    Role,
    Slot,
    StoppingRule,
)
from raysweep.job import registry

LAYERS, HEADS = 3, 5
ABSENT: tuple[Slot, ...] = ((0, 1), (1, 0), (1, 3), (1, 4), (2, 2))
ARRAYS = (*HEAD_STATISTICS, *HEAD_STATISTICS_ON_DEMAND)


def option_sets(kind: str, name: str) -> list[dict[str, Any]]:
    """Return the ways to build a strategy: every value of its required options, a fixed few or one given as example."""
    strategy = registry.load(kind, name)
    required = {
        item.name: item for item in dataclasses.fields(strategy)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }  # fmt: skip
    hints = get_type_hints(strategy) if required else {}
    values = {
        option: [item.metadata["example"]] if "example" in item.metadata else get_args(hints[option])
        for option, item in required.items()
    }
    assert all(values.values()), f"{kind}/{name}: give {list(required)} a default or an example"
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def all_of(kind: str) -> list[Any]:
    """Return every strategy of a kind with each of its required options, as pytest parameters."""
    return [
        pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
        for name in registry.available(kind) for options in option_sets(kind, name)
    ]  # fmt: skip


def statistics(seed: int = 0, absent: Sequence[Slot] = ABSENT, **changes: Any) -> HeadStatistics:
    """Return made-up statistics that cannot be written to; before the last prune, (0, 1) alone was absent."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array] = {name: generator.uniform(0.05, 0.95, (LAYERS, HEADS)) for name in ARRAYS}
    present = np.ones((LAYERS, HEADS), dtype=bool)
    for slot in absent:
        present[slot] = False
    before = generator.uniform(0.05, 0.95, (LAYERS, HEADS))
    before[0, 1] = np.nan
    sensitivity = generator.uniform(0.05, 0.95, (LAYERS, HEADS))
    filled = {**arrays, "present": present, "reference_entropy": before, "sensitivity": sensitivity, **changes}
    for array in filled.values():
        array.setflags(write=False)
    return HeadStatistics(**filled)


@pytest.fixture
def global_generators_untouched() -> Any:
    """Fail a test in which anything draws from a generator that belongs to everybody."""
    random.seed(7)
    np.random.seed(7)
    before = (random.getstate(), str(np.random.get_state()))
    yield
    assert (random.getstate(), str(np.random.get_state())) == before


pytestmark = pytest.mark.usefixtures("global_generators_untouched")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.torch] if kind == "tasks" else [])
        for kind in registry.KINDS if kind != "analyses" for name in registry.available(kind)
    ],
)  # fmt: skip
def test_every_strategy_of_ours_derives_from_its_contract(kind: str, name: str) -> None:
    assert getattr(contracts, registry.KINDS[kind][1]) in registry.load(kind, name).__mro__


# prune/


@pytest.mark.parametrize(("name", "options"), all_of("prune"))
def test_a_pruner_scores_every_head_with_a_finite_number(name: str, options: dict[str, Any]) -> None:
    given = statistics()
    scores = registry.build("prune", name, options)(given, np.random.default_rng(0))
    assert scores.shape == (LAYERS, HEADS) and scores.dtype == np.float64
    assert np.isfinite(scores[given.present]).all()
    assert len(np.unique(scores[given.present])) > 5, "a constant ranks nothing"


@pytest.mark.parametrize(("name", "options"), all_of("prune"))
def test_a_pruner_gives_equal_scores_for_equal_statistics_and_seeds(name: str, options: dict[str, Any]) -> None:
    first, second = (registry.build("prune", name, options)(statistics(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("name", "options"), all_of("prune"))
def test_a_pruner_reads_the_statistics_or_the_generator(name: str, options: dict[str, Any]) -> None:
    pruner = registry.build("prune", name, options)
    first = pruner(statistics(seed=1), np.random.default_rng(1))
    assert not np.array_equal(first, pruner(statistics(seed=2), np.random.default_rng(2)))


@pytest.mark.parametrize(("name", "options"), all_of("prune"))
def test_a_present_head_is_scored_alike_whatever_stands_in_absent_slots(name: str, options: dict[str, Any]) -> None:
    given = statistics()
    other = {field: getattr(given, field).copy() for field in ARRAYS}
    for array in other.values():
        array[~given.present] = 0.5
    first, second = (
        registry.build("prune", name, options)(measured, np.random.default_rng(0))
        for measured in (given, statistics(**other))
    )
    assert np.array_equal(first[given.present], second[given.present])


@pytest.mark.parametrize(
    ("name", "options", "measure", "sign"),
    [
        ("taylor", {}, "taylor", 1),
        ("magnitude", {}, "magnitude", 1),
        ("entropy", {"direction": "low"}, "entropy", 1),
        ("entropy", {"direction": "high"}, "entropy", -1),
    ],
)
def test_a_pruner_ranks_by_what_its_name_says(name: str, options: dict[str, Any], measure: str, sign: int) -> None:
    given = statistics()
    scores = registry.build("prune", name, options)(given, np.random.default_rng(0))
    assert np.array_equal(np.argsort(scores, axis=None), np.argsort(sign * getattr(given, measure), axis=None))


# grow/


@pytest.mark.parametrize("count", range(len(ABSENT) + 1))
@pytest.mark.parametrize(("name", "options"), all_of("grow"))
def test_a_grower_returns_exactly_as_many_distinct_absent_slots_as_asked(
    name: str, options: dict[str, Any], count: int
) -> None:
    for seed in range(5):
        chosen = registry.build("grow", name, options)(statistics(seed), count, np.random.default_rng(seed))
        assert len(chosen) == len(set(chosen)) == count and set(chosen) <= set(ABSENT)
        assert json.loads(json.dumps(chosen)) == [list(slot) for slot in chosen], "slots are recorded as plain numbers"
        assert all(type(slot) is tuple for slot in chosen)


@pytest.mark.parametrize(("name", "options"), all_of("grow"))
def test_a_grower_gives_equal_slots_for_equal_statistics_and_seeds(name: str, options: dict[str, Any]) -> None:
    first, second = (registry.build("grow", name, options)(statistics(), 3, np.random.default_rng(3)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("name", "options"), all_of("grow"))
def test_a_grower_that_draws_nothing_puts_the_best_slots_first(name: str, options: dict[str, Any]) -> None:
    """The first of several is the one that it would have grown alone; drawing growers promise no order."""
    grower, generator = registry.build("grow", name, options), np.random.default_rng(0)
    all_slots = grower(statistics(), len(ABSENT), generator)
    if generator.bit_generator.state == np.random.default_rng(0).bit_generator.state:
        for count in range(len(ABSENT)):
            assert grower(statistics(), count, generator) == all_slots[:count]
    else:
        chosen = {tuple(grower(statistics(), 2, np.random.default_rng(seed))) for seed in range(20)}
        assert len(chosen) > 5, "a drawing grower depends on its seed"


@pytest.mark.parametrize(("name", "options"), all_of("grow"))
def test_a_grower_fills_layers_that_lost_everything(name: str, options: dict[str, Any]) -> None:
    gone = [(1, head) for head in range(HEADS)]
    chosen = registry.build("grow", name, options)(statistics(absent=gone), HEADS, np.random.default_rng(0))
    assert sorted(chosen) == gone


def test_balanced_growth_goes_to_the_emptiest_layer_first() -> None:
    chosen = registry.build("grow", "balanced")(statistics(), 4, np.random.default_rng(0))
    assert [layer for layer, _ in chosen] == [1, 1, 0, 1]


def test_sensitive_growth_takes_the_slots_that_the_loss_feels_most() -> None:
    given = statistics()
    sensitivity = given.sensitivity
    assert sensitivity is not None
    chosen = registry.build("grow", "gradient_sensitivity")(given, 3, np.random.default_rng(0))
    assert chosen == sorted(ABSENT, key=lambda slot: -sensitivity[slot])[:3]


def test_sensitive_growth_breaks_ties_by_place_and_overlooks_noise_in_the_last_digits() -> None:
    felt = np.full((LAYERS, HEADS), 0.5)
    felt[2, 2] += 1e-14  # what another order of summation can do
    chosen = registry.build("grow", "gradient_sensitivity")(statistics(sensitivity=felt), 3, np.random.default_rng(0))
    assert tuple(chosen) == ABSENT[:3]


def test_entropy_gap_growth_goes_where_the_prune_tore_the_largest_hole() -> None:
    before = np.tile(np.array([0.1, 0.3, 0.5, 0.7, 0.9]), (LAYERS, 1))
    absent = [(0, 2), (1, 0), (1, 1), (2, 4)]  # the middle; the whole lower part; one end
    given = statistics(absent=absent, reference_entropy=before, entropy=before.copy())
    chosen = registry.build("grow", "entropy_gap")(given, 4, np.random.default_rng(0))
    assert chosen[0] == (1, 0) and set(chosen[1:3]) == {(1, 1), (2, 4)} and chosen[3] == (0, 2)


def test_entropy_gap_growth_closes_as_much_of_a_gap_as_it_can_with_every_slot() -> None:
    """Against the definition: entropies in hundredths, so that the distance is a sum over a hundred cells."""
    cells = (np.arange(100) + 0.5) / 100

    def gap(before: Array, now: list[float]) -> float:
        shares = [(np.array(sample)[:, None] <= cells).mean(0) for sample in (before, now)]
        return float(np.abs(shares[0] - shares[1]).mean())

    absent = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 0), (2, 4)]
    for seed in range(20):
        before = np.random.default_rng(seed).integers(0, 100, (LAYERS, HEADS)) / 100
        entropy = np.random.default_rng(seed + 50).integers(0, 100, (LAYERS, HEADS)) / 100  # they have drifted since
        given = statistics(absent=absent, reference_entropy=before.copy(), entropy=entropy)
        now = [list(row[kept]) for row, kept in zip(entropy, given.present, strict=True)]
        left = list(absent)
        for slot in registry.build("grow", "entropy_gap")(given, len(absent), np.random.default_rng(0)):
            closed = {
                (layer, head): gap(before[layer], now[layer]) - gap(before[layer], [*now[layer], before[layer, head]])
                for layer, head in left
            }
            assert closed[slot] == pytest.approx(max(closed.values()), abs=1e-9)
            left.remove(slot)
            now[slot[0]].append(before[slot])


def test_entropy_gap_growth_takes_a_slot_without_history_last() -> None:
    before = np.full((LAYERS, HEADS), 0.5)
    before[0, 1] = np.nan  # absent already before this cycle's prune
    before[1] = [0.9, 0.5, 0.5, 0.1, 0.1]
    chosen = registry.build("grow", "entropy_gap")(
        statistics(absent=[(0, 1), (1, 0)], reference_entropy=before, entropy=before.copy()),
        2,
        np.random.default_rng(0),
    )
    assert chosen == [(1, 0), (0, 1)]


# init/

ROLES: tuple[Role, ...] = ("query", "key", "value", "output")


def fresh(name: str, role: Role, shape: tuple[int, ...], seed: int = 0, std: float = 0.02) -> Any:
    """Return what an initializer makes of a slice, given other weights of the model's scale where it needs any."""
    import torch

    from raysweep.contracts import NewSlice

    initializer, weights = registry.build("init", name), torch.full(shape, float("nan"))
    given = torch.randn(shape, generator=torch.Generator().manual_seed(99)) * (std if len(shape) == 2 else 0.0)
    directed = initializer.needs == "directions" and not (role == "value" and len(shape) == 2)
    new = NewSlice(
        role=role, weights=weights, std=std, generator=torch.Generator().manual_seed(seed),
        given=None if initializer.needs == "nothing" or directed else given,
    )  # fmt: skip
    with torch.no_grad():
        initializer(new)
    return weights


@pytest.mark.torch
@pytest.mark.parametrize("name", registry.available("init"))
def test_an_initializer_fills_every_slice_in_place_and_from_its_own_generator(name: str) -> None:
    import torch

    before = torch.get_rng_state()
    for role, shape in itertools.product(ROLES, [(4, 6), (6, 4), (4,)]):
        first, again = fresh(name, role, shape), fresh(name, role, shape)
        assert torch.isfinite(first).all() and torch.equal(first, again), (role, shape)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.torch
@pytest.mark.parametrize("name", registry.available("init"))
def test_a_new_head_is_not_dead(name: str) -> None:
    """Something before and after the product with the values must be alive, or no gradient ever arrives."""
    alive = {role for role in ROLES if fresh(name, role, (8, 8)).abs().sum() > 0}
    assert alive >= {"query", "key", "value"} or alive >= {"query", "key", "output"}


@pytest.mark.torch
@pytest.mark.parametrize("name", registry.available("init"))
def test_an_initializer_says_truly_which_gradient_is_alive_at_insertion(name: str) -> None:
    output_is_zero = bool((fresh(name, "output", (8, 8)) == 0).all())
    forms = registry.load("init", name).forms
    assert set(forms) <= ({"output", "gradmax"} if output_is_zero else {"gate"}) and forms


@pytest.mark.torch
@pytest.mark.parametrize("name", [name for name in registry.available("init") if name != "split"])
def test_new_weights_have_the_scale_of_the_model_and_new_biases_are_zero(name: str) -> None:
    for role in ROLES:
        weights, biases = fresh(name, role, (200, 200), std=0.05), fresh(name, role, (200,), std=0.05)
        spread = float(weights.std())
        assert spread == 0 or abs(spread - 0.05) < 0.002
        assert abs(float(weights.mean())) < 0.002 and not biases.any()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["gradmax", "small_random", "zero_output"])
def test_heads_drawn_with_other_seeds_differ(name: str) -> None:
    assert not (fresh(name, "query", (4, 4), seed=1) == fresh(name, "query", (4, 4), seed=2)).any()


# models/

SIZES = [(name, size) for name in registry.available("models") for size in registry.load("models", name).sizes]
SMALLEST = [(name, next(iter(registry.load("models", name).sizes))) for name in registry.available("models")]
SEQ_LEN, VOCABULARY = 16, 40


FACTS = Facts(vocab_size=VOCABULARY, mask_token=2, pad_token=1, num_classes=3, image_shape=(1, 8, 8), brightest=16)


def task_of(name: str) -> Any:
    return registry.load("tasks", registry.load("models", name).tasks[0])(facts=FACTS)


def network_of(name: str, size: str, device: str = "cpu") -> Any:
    """Build a from-scratch network whose parameters are all random and non-zero."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        config = registry.build("models", name).config(size, vocab_size=VOCABULARY, seq_len=SEQ_LEN)
        network = getattr(transformers, task_of(name).model_class).from_config(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def inputs_of(name: str, batch: int, device: str = "cpu") -> Any:
    """Return inputs that a family's first task makes of rows of integers."""
    rows = {"windows": SEQ_LEN, "images": 1 + 64}[task_of(name).reads]
    examples = np.arange(3, 3 + batch * rows).reshape(batch, rows) % 13 + 3
    return task_of(name).batch(examples, range(batch)).inputs.to(device)


def test_a_size_belongs_to_one_family() -> None:
    names = [size for _, size in SIZES]
    assert len(names) == len(set(names)) and len(names) >= len(registry.available("models"))


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_a_size_is_built_with_the_vocabulary_and_window_asked_for(name: str, size: str) -> None:
    network = network_of(name, size, device="meta")
    assert network.config.model_type == name
    logits = network(inputs_of(name, 2, "meta")).logits
    if task_of(name).reads == "windows":
        assert network.config.vocab_size == VOCABULARY and logits.shape == (2, SEQ_LEN, VOCABULARY)
    else:
        assert len(logits) == 2


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_a_family_finds_every_head_in_slices_that_exist_and_never_overlap(name: str, size: str) -> None:
    import torch

    network = network_of(name, size, device="meta")
    sites = registry.build("models", name).sites(network)
    parameters, modules = dict(network.named_parameters()), set(network.modules())
    assert [site.layer for site in sites] == list(range(network.config.num_hidden_layers))
    claimed: dict[str, Any] = {}
    for site in sites:
        assert {site.attention, site.projection} <= modules and site.num_heads == network.config.num_attention_heads
        slices = [part for head in range(site.num_heads) for part in site.head_slices(head)]
        if site.grouped:
            slices += [part for group in range(site.num_key_value_heads) for part in site.group_slices(group)]
        assert {part.role for part in slices} == set(ROLES)
        for part in slices:
            parameter = parameters[part.parameter]
            mask = claimed.setdefault(part.parameter, torch.zeros(parameter.shape, dtype=torch.bool))
            view = mask.narrow(part.dim, part.start, part.length)
            assert not view.any(), f"{part} is claimed twice"
            view.fill_(True)
    assert all(mask.all() for mask in claimed.values()), "a sliced parameter belongs to heads as a whole"
    assert len(claimed) % len(sites) == 0, "the same parameters in every layer"


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_closing_a_heads_columns_equals_zeroing_its_output_slices(name: str, size: str) -> None:
    import torch

    network = network_of(name, size).eval()
    site, head = registry.build("models", name).sites(network)[-1], 2
    inputs = inputs_of(name, 2)

    def close(module: Any, inputs: Any) -> Any:
        heads = inputs[0].unflatten(-1, (site.num_heads, site.head_dim)).clone()
        heads[:, :, head] = 0
        return (heads.flatten(2),)

    with torch.no_grad():
        whole = network(inputs).logits
        handle = site.projection.register_forward_pre_hook(close)
        closed = network(inputs).logits
        handle.remove()
        for part in site.head_slices(head):
            if part.role == "output":
                network.get_parameter(part.parameter).narrow(part.dim, part.start, part.length).zero_()
        zeroed = network(inputs).logits
    assert not torch.allclose(whole, closed) and torch.allclose(closed, zeroed, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size"), SMALLEST)
@pytest.mark.parametrize("role", ["query", "key", "value"])
def test_the_slices_of_a_role_feed_that_head_and_no_other(name: str, size: str, role: str) -> None:
    import torch

    network = network_of(name, size).eval()
    site, head = registry.build("models", name).sites(network)[0], 3
    inputs = inputs_of(name, 1)
    seen: list[Any] = []
    site.projection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    parts = [*site.head_slices(head), *(site.group_slices(site.group_of(head)) if site.grouped else [])]
    with torch.no_grad():
        network(inputs)
        del seen[1:]  # a shared module is seen at every step, and later ones read what all heads wrote before
        for part in parts:
            if part.role == role:
                view = network.get_parameter(part.parameter).narrow(part.dim, part.start, part.length)
                view.copy_(torch.randn(view.shape, generator=torch.Generator().manual_seed(1)))
        network(inputs)
    before, after = (outputs.unflatten(-1, (site.num_heads, site.head_dim)) for outputs in seen[:2])
    changed = {at for at in range(site.num_heads) if not torch.allclose(before[:, :, at], after[:, :, at], atol=1e-5)}
    shared = role != "query"
    members = {at for at in range(site.num_heads) if site.group_of(at) == site.group_of(head)} if shared else {head}
    assert changed == members and head in members


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_a_network_in_training_mode_drops_nothing_out(name: str, size: str) -> None:
    import torch

    network = network_of(name, size).train()
    inputs = inputs_of(name, 1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        assert torch.equal(network(inputs).logits, network(inputs).logits)


# samplers/ are tested with the study that asks them, in sweep/test_study.py.


# tasks/


@pytest.mark.torch
@pytest.mark.parametrize("name", registry.available("tasks"))
def test_a_task_says_what_it_reads_and_which_class_of_transformers_learns_it(name: str) -> None:
    import transformers

    task = registry.load("tasks", name)
    assert task.reads in ("windows", "sentences", "images") and hasattr(transformers, task.model_class)
    assert all(hasattr(FACTS, fact) for fact in task.needs)
    assert any(name in registry.load("models", family).tasks for family in registry.available("models"))


@pytest.mark.parametrize("name", registry.available("models"))
def test_what_a_family_can_learn_are_tasks_that_exist(name: str) -> None:
    tasks = registry.load("models", name).tasks
    assert tasks and set(tasks) <= set(registry.available("tasks"))


# schedulers/


@dataclasses.dataclass
class Sweep:
    """What a rule is told of interleaved trials, a report or the number of one that ended, and what it says to that."""

    rule: StoppingRule
    told: list[Report | int] = dataclasses.field(default_factory=list)
    said: list[tuple[Decision | None, dict[int, Decision]]] = dataclasses.field(default_factory=list)

    def tell(self, news: Report | int) -> tuple[Decision | None, dict[int, Decision]]:
        answer: Decision | None = None
        if isinstance(news, int):
            self.rule.ended(news)
        else:
            answer = self.rule.report(news)
        self.told.append(news)
        self.said.append((answer, self.rule.decided()))
        return self.said[-1]

    def run(self, trials: int, seed: int) -> Sweep:
        """Run trials to their ends, reporting in a random order; one in seventeen fails on its way."""
        generator = random.Random(seed)
        steps = dict.fromkeys(range(1, trials + 1), 0)
        going, paused, decided = set(steps), set[int](), dict[int, Decision]()
        while going:
            trial = generator.choice(sorted(going))
            steps[trial] += 1
            answer, news = self.tell(curve_point(trial, steps[trial]))
            decided.update(news)
            if answer is not None and answer.action == "pause":
                going.remove(trial)
                paused.add(trial)
            elif answer != GO or steps[trial] == 20 or (trial % 17 == 4 and steps[trial] == 2):
                going.remove(trial)
                decided.update(self.tell(trial)[1])
            while decided:
                number, decision = decided.popitem()
                paused.remove(number)  # fails for a trial that was not paused
                if decision == GO:
                    going.add(number)
                else:
                    assert decision.action == "stop"
                    decided.update(self.tell(number)[1])
        assert not paused, "no trial waits for ever"
        return self

    def decisions(self) -> list[Decision]:
        return [decision for answer, decided in self.said for decision in (answer, *decided.values()) if decision]


def curve_point(trial: int, step: int) -> Report:
    """Return a report of a model with a tenth of its compute pruned away, its loss depending on its number."""
    share = 0.9 * step / 20
    loss = 2 + (trial * 37 % 23) / 23 + 2 * np.exp(-3 * share * (1 + trial % 3))
    return Report(trial=trial, phase="learn", cycle=1, step=step, flops=share * 1e9, share=share, loss=float(loss))


def rule_of(name: str, trials: int) -> StoppingRule:
    return registry.build("schedulers", name).build(trials)


@pytest.mark.parametrize("name", registry.available("schedulers"))
def test_a_rule_lets_every_trial_come_to_an_end_and_decides_the_same_of_the_same(name: str) -> None:
    first, again = (Sweep(rule_of(name, 40)).run(40, seed=3) for _ in range(2))
    assert (first.told, first.said) == (again.told, again.said)
    stopped = sum(decision.action == "stop" for decision in first.decisions())
    assert (stopped > 0) == (name != "none") and stopped < 40
    assert all(decision == GO or decision.reason for decision in first.decisions())


@pytest.mark.parametrize("name", registry.available("schedulers"))
@pytest.mark.parametrize("done", [0.2, 0.5, 0.8])
def test_a_rule_that_is_told_all_reports_again_is_the_rule_that_it_was(name: str, done: float) -> None:
    whole = Sweep(rule_of(name, 40)).run(40, seed=5)
    rebuilt = rule_of(name, 40)
    cut = round(done * len(whole.told))
    before = whole.told[:cut]
    for report in (news for news in before if isinstance(news, Report)):
        rebuilt.report(report)
    for trial in (news for news in before if isinstance(news, int)):
        rebuilt.ended(trial)
    rebuilt.decided()
    rest = Sweep(rebuilt)
    assert [rest.tell(news) for news in whole.told[cut:]] == whole.said[cut:]


@pytest.mark.parametrize("name", registry.available("schedulers"))
def test_a_report_that_a_later_attempt_repeats_counts_once_and_is_answered_as_it_was(name: str) -> None:
    whole, again = Sweep(rule_of(name, 40)).run(40, seed=5), Sweep(rule_of(name, 40))
    reports: dict[int, list[Report]] = {}
    for news, said in zip(whole.told, whole.said, strict=True):
        assert again.tell(news) == said
        if isinstance(news, Report):
            reports.setdefault(news.trial, []).append(news)
            if said[0] == GO:  # trained once more from the trial's last checkpoint on
                assert all(again.rule.report(known) == GO for known in reports[news.trial][-3:])


@pytest.mark.parametrize("name", registry.available("schedulers"))
def test_a_trial_alone_runs_to_its_end(name: str) -> None:
    assert set(Sweep(rule_of(name, 1)).run(1, seed=0).decisions()) == {GO}
