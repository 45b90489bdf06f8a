"""Every verdict follows from the data: it flips where the effect is planted, and where it is taken away."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.subjects import LENGTH, VOCABULARY, WIDTH, planted_subject, tiny_pnn, tiny_subject

from raysweep.errors import NotApplicableError
from raysweep.science.pnn.analyses import (
    ablation,
    convergence,
    difficulty,
    dimensions,
    gates,
    representation,
    trace,
    trajectory,
)
from raysweep.science.pnn.reference import matched_classes
from raysweep.science.pnn.subject import PnnSubject, untrained_twin
from raysweep.science.statistics.finding import Finding

STEPS = 3
SPREAD = 46


def blank(subject: PnnSubject, width: int = SPREAD) -> torch.Tensor:
    rows = sum(len(batch.inputs) for batch in subject.batches)
    return torch.ones(STEPS + 1, rows, LENGTH, width, dtype=torch.float64)


def masked_places(subject: PnnSubject) -> tuple[Any, Any, Any]:
    """Return the rows, columns and labels of masked tokens, in the order of the predictions."""
    found = tiny_subject(sequences=len(blank(subject)[0])).predictions()
    return found.sequences, found.positions, found.labels


def effects(found: Finding) -> dict[str, Any]:
    return {one.name: one for one in found.comparisons}


def untrained_subject(**options: Any) -> PnnSubject:
    return tiny_subject(untrained_twin(tiny_pnn(**options), seed=77), sequences=40)


# Step trace.


def test_the_trace_says_which_steps_help_and_which_harm() -> None:
    def states(subject: PnnSubject) -> torch.Tensor:
        made = blank(subject)
        rows, columns, labels = masked_places(subject)
        for step, certainty in enumerate((0.0, 3.0, 3.0, 1.0)):
            made[step, rows, columns, labels] += certainty
        return made

    found = trace.Analysis()(planted_subject(states))
    assert found.verdict == "The loss falls at step 1; rises at step 3; is not found to change at step 2."
    at = found.figures["masked"]
    assert at["loss"] == pytest.approx([np.log(1 + (VOCABULARY - 1) / np.e**certainty) for certainty in (0, 3, 3, 1)])
    assert at["accuracy"][1:] == [1.0, 1.0, 1.0] and at["predicted"] == at["tokens"] == 60
    assert found.figures["unmasked"]["predicted"] == 60 and found.figures["unmasked"]["tokens"] == 30 * 12


# Gates.


def test_gates_that_are_planted_open_are_found_and_untrained_ones_are_not() -> None:
    network = tiny_pnn()
    with torch.no_grad():
        for projection in (network.pnn.refiner.gate.query, network.pnn.refiner.gate.key):
            projection.bias.fill_(9.0)
    found = gates.Analysis()(tiny_subject(network))
    assert found.verdict.endswith("at every step.") and found.figures["all"]["open_share"] == [1.0] * STEPS
    assert "At no step" in gates.Analysis()(untrained_subject()).verdict


def test_gate_figures_are_split_into_masked_and_unmasked() -> None:
    figures = gates.Analysis()(tiny_subject(sequences=12)).figures
    assert [figures[name]["tokens"] for name in ("all", "masked", "unmasked")] == [12 * LENGTH, 24, 12 * LENGTH - 24]
    parts = (2 * np.array(figures["masked"]["mean"]) + 12 * np.array(figures["unmasked"]["mean"])) / 14
    assert figures["all"]["mean"] == pytest.approx(parts)


# Convergence.


def test_the_published_step_is_the_first_repeat_and_the_permanent_one_the_last_change() -> None:
    predicted = np.array([[1, 1, 5, 1, 4], [1, 2, 2, 2, 3], [1, 2, 2, 1, 2], [1, 3, 2, 2, 1]])
    #   columns:          still    changes late  at 1   swings   never the same
    assert convergence.first_repeat(predicted).tolist() == [1, 2, 2, 3, 3]
    assert convergence.permanent(predicted).tolist() == [0, 3, 1, 3, 3]


def test_permuted_steps_keep_the_embedding_and_each_tokens_predictions() -> None:
    predicted = np.random.default_rng(0).integers(50, size=(5, 200))
    permuted = convergence.permuted_steps(predicted, np.random.default_rng(1))
    assert (permuted[0] == predicted[0]).all() and (np.sort(permuted, 0) != permuted).any()
    assert (np.sort(permuted[1:], 0) == np.sort(predicted[1:], 0)).all()
    assert (permuted != predicted).any(1)[1:].all()


def settling(late: str) -> Any:
    """Return states whose predictions settle at once, but for hard tokens, all of them or a random half.

    Those settle right before the last step; with `never`, each of a hard token's predictions is another one.
    """

    def states(subject: PnnSubject) -> torch.Tensor:
        made = blank(subject)
        rows, columns, labels = masked_places(subject)
        classes = matched_classes(subject.difficulty(), subject.frequency[labels])
        waits = {"hard": classes == 2, "never": classes == 2, "all": classes >= 0,
                 "random": np.random.default_rng(3).random(len(rows)) < 0.5}  # fmt: skip
        for step in range(STEPS + 1):
            other = (labels + 1 + step) % VOCABULARY
            waiting = waits[late] & (step < (STEPS if late == "never" else STEPS - 1))
            made[step, rows, columns, np.where(waiting, other, labels)] += 5.0
        return made

    return states


@pytest.mark.parametrize(("late", "found"), [("hard", True), ("all", False), ("random", False)])
def test_hard_tokens_are_said_to_settle_later_only_where_they_do(late: str, found: bool) -> None:
    told = convergence.Analysis()(planted_subject(settling(late), sequences=40))
    assert told.verdict.startswith("Hard tokens settle" if found else "Not found"), told.verdict
    assert (effects(told)[convergence.EFFECT].found) == found
    if found:
        assert effects(told)[convergence.EFFECT].effect == pytest.approx(STEPS - 1)


def test_tokens_that_never_settle_are_not_said_to_settle_later() -> None:
    told = convergence.Analysis()(planted_subject(settling("never"), sequences=40))
    assert effects(told)[convergence.EFFECT].found  # but not beyond the same predictions in any order
    assert told.verdict.startswith("Not found") and f"not found: {convergence.SETTLED}" in told.verdict


def test_the_embedding_is_said_to_know_nothing_but_the_place() -> None:
    found = convergence.Analysis()(tiny_subject(sequences=20))
    assert found.figures["embedding"]["different_predictions"] <= LENGTH
    assert f"at the embedding: {found.figures['embedding']['different_predictions']}." in found.verdict


def test_other_networks_are_compared_on_the_same_masks() -> None:
    layers = tiny_pnn(seed=5, trunk="layers", num_steps=2)
    found = convergence.Analysis()(tiny_subject(compared={"stack": layers}))
    assert f"{convergence.EFFECT}, minus stack" in effects(found)
    assert set(found.figures["matched_classes_of_others"]) == {"untrained", "stack"}


# Trajectory.


def wandering(shrink: float, seed: int) -> list[torch.Tensor]:
    """Return sequences whose updates shrink by a factor; each goes half on as before."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(25):
        state = 20 * torch.randn(9, WIDTH, generator=generator, dtype=torch.float64)
        update, states = torch.zeros_like(state), []
        for step in range(6):
            states.append(state)
            fresh = torch.randn(9, WIDTH, generator=generator, dtype=torch.float64) * shrink**step
            update = fresh if shrink == 1 else fresh + shrink * update
            state = state + update
        made.append(torch.stack(states))
    return made


def test_a_planted_order_of_steps_is_found_and_random_updates_have_none() -> None:
    trend, cosine, _ = trajectory.compared(trajectory.trajectory_metrics(wandering(0.5, 0)), np.random.default_rng(0))
    assert trend.found and trend.effect < 0 and cosine.found and cosine.effect > 0
    trend, cosine, _ = trajectory.compared(trajectory.trajectory_metrics(wandering(1.0, 1)), np.random.default_rng(0))
    assert not cosine.found and abs(cosine.effect) < 0.03
    assert "Not found" in trajectory._verdict([dataclasses.replace(one, q_value=1.0) for one in (trend, cosine)])


def test_two_steps_have_no_order() -> None:
    with pytest.raises(NotApplicableError, match="this network has 2"):
        trajectory.Analysis()(tiny_subject(tiny_pnn(num_steps=2)))


# Representation.


def test_states_that_fill_one_dimension_are_said_to_be_narrow_and_untrained_ones_are_not() -> None:
    def states(subject: PnnSubject) -> torch.Tensor:
        made = torch.randn(blank(subject).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        made[2:, :, :, 1:] = 0.0
        return made

    found = representation.Analysis()(planted_subject(states))
    smaller = next(part for part in found.verdict.split(";") if "smaller" in part)
    assert "breadth is smaller than untrained at step 2, 3" in smaller
    assert "No recording of a brain" in found.verdict
    assert "No difference" in representation.Analysis()(untrained_subject()).verdict


# Dimensions.


def sized(sizes: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Return sequences (steps + 1, 50, width) of states with the given sizes (steps + 1, width), and random signs."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(sizes), 50, sizes.shape[1])
    return [
        sizes[:, None] * (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5)
        * (torch.randint(2, shape, generator=generator) * 2 - 1)
        for _ in range(30)
    ]  # fmt: skip


def test_dimensions_are_told_apart_by_what_was_planted_and_growth_is_none_of_it() -> None:
    sizes = torch.ones(4, 40, dtype=torch.float64)
    sizes[:, 0] = torch.tensor([1.0, 1.2, 1.4, 1.6])
    sizes[:, 1] = torch.tensor([1.6, 1.4, 1.2, 1.0])
    sizes[:, 2] = torch.tensor([1.0, 1.6, 1.0, 1.6])
    growth = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None]
    found = dimensions._kinds(dimensions.dimensions(sized(sizes * growth)))
    assert found[:3] == ["accumulator", "selector", "oscillator"]
    assert found[3:].count("no trend found") >= 30
    null = dimensions._kinds(dimensions.dimensions(sized(torch.ones(4, 400, dtype=torch.float64) * growth, seed=1)))
    assert null.count("no trend found") >= 396  # unadjusted, 20 would be found


def test_kinds_of_dimensions_are_held_against_untrained_networks() -> None:
    def states(subject: PnnSubject) -> torch.Tensor:
        made = torch.randn(blank(subject).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return made * torch.linspace(1, 3, STEPS + 1)[:, None, None, None] ** torch.tensor([1, -1] * (SPREAD // 2))

    found = dimensions.Analysis()(planted_subject(states))
    assert found.figures["trained"]["accumulator"] >= 18 and found.figures["trained"]["selector"] >= 18
    assert "unlike untrained networks in accumulator (+" in found.verdict
    assert "as in untrained networks" in dimensions.Analysis()(untrained_subject()).verdict


# Difficulty.


def energies(by: str) -> Any:
    def states(subject: PnnSubject) -> torch.Tensor:
        made = blank(subject)
        rows, columns, labels = masked_places(subject)
        noise = np.random.default_rng(4).normal(size=(STEPS, len(rows)))
        known = {"difficulty": subject.difficulty(), "frequency": np.log1p(subject.frequency[labels])}[by]
        for step in range(STEPS):
            sizes = torch.from_numpy(np.exp(0.5 * known + 0.2 * noise[step]))
            made[step + 1] = made[step] + 1.0
            made[step + 1, rows, columns] = made[step, rows, columns] + sizes[:, None]
        return made

    return states


def test_harder_tokens_are_said_to_move_further_only_where_difficulty_does_it() -> None:
    planted = difficulty.Analysis()(planted_subject(energies("difficulty"), sequences=40))
    assert planted.verdict.startswith("Harder tokens move further")
    assert effects(planted)["all steps"].effect == pytest.approx(1.0, abs=0.2)  # the square of exp(d / 2)
    confounded = difficulty.Analysis()(planted_subject(energies("frequency"), sequences=40))
    assert confounded.verdict.startswith("Not found")


# Ablation.


def knowing_subject(network: Any) -> PnnSubject:
    """Return a subject whose labels are the predictions of the network, so that ablating what it uses costs."""
    subject = tiny_subject(network, sequences=30)
    with torch.no_grad():
        batches = [
            dataclasses.replace(
                batch, labels=torch.where(batch.labels == -100, -100, network(batch.inputs).logits.argmax(-1))
            )
            for batch in subject.batches
        ]
    return dataclasses.replace(subject, batches=batches)


def test_parts_that_do_nothing_cost_nothing_and_those_that_are_used_do() -> None:
    network = tiny_pnn(scale=0.6)
    with torch.no_grad():
        network.pnn.refiner.attention.o_proj.weight[:, 5:] = 0  # heads 1 and 2 write nothing
    found = ablation.Analysis()(knowing_subject(network))
    for name, one in effects(found).items():
        if "head 1" in name or "head 2" in name:
            assert one.effect == pytest.approx(0, abs=1e-12) and not one.found, name
    used = effects(found)["step 1: proposal by mean"]
    assert used.found and used.effect > 0
    assert "raise the loss" in found.verdict and "step" in found.verdict


def test_a_network_whose_gates_are_shut_needs_none_of_its_parts() -> None:
    network = tiny_pnn()
    with torch.no_grad():
        network.pnn.refiner.gate.query.bias.fill_(1e4)
        network.pnn.refiner.gate.key.weight.zero_()
        network.pnn.refiner.gate.key.bias.fill_(-1e4)
    found = ablation.Analysis()(knowing_subject(network))
    assert found.verdict == "None of 36 ablations was found to change the loss."


def test_ablating_to_the_mean_is_behind_the_last_norm_and_at_one_step() -> None:
    subject = tiny_subject(sequences=20)
    network = subject.network
    refiner = network.pnn.refiner
    inputs = torch.cat([batch.inputs for batch in subject.batches])
    with torch.no_grad():
        states = network.pnn.states(inputs)
        proposals = [refiner.transform(state, refiner.attention(state, state)) for state in states[:-1]]
        mean = proposals[1].mean((0, 1))
        state = states[1] + refiner.gate(states[1], mean.expand_as(states[1])) * mean
        state = refiner(state, state)
        logits = network.predict(state)
    labels = torch.cat([batch.labels for batch in subject.batches])
    plain = network.predict(states[-1])
    cost = [
        torch.nn.functional.cross_entropy(each[labels != -100], labels[labels != -100]).item()
        for each in (logits, plain)
    ]
    found = effects(ablation.Analysis()(subject))["step 2: proposal by mean"]
    assert found.effect == pytest.approx(cost[0] - cost[1])


def test_layers_and_gates_that_do_not_depend_on_the_input_have_fewer_parts() -> None:
    names = effects(ablation.Analysis()(tiny_subject(tiny_pnn(trunk="layers"))))
    assert len(names) == 3 * 2 * (1 + 3) and not any("proposal" in name or "gate" in name for name in names)
    assert not any("gate" in name for name in effects(ablation.Analysis()(tiny_subject(tiny_pnn(gate="constant")))))
    with pytest.raises(NotApplicableError, match="hierarchical"):
        ablation.Analysis()(tiny_subject(tiny_pnn(trunk="hierarchical")))
