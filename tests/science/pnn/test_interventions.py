"""The output of a part can be read and changed at every step of every trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.subjects import LENGTH, WIDTH, tiny_pnn, tiny_subject

from raysweep.science.pnn.interventions import changed, observed
from raysweep.science.pnn.trace import predictions

TRUNKS = ("refiner", "hierarchical", "layers", "shared_layer")


def states(network: Any, batch: Any, steps: int | None = None) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(network.pnn.states(batch.inputs, steps=steps))


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("part", ["attention", "heads", "proposal"])
def test_every_step_is_seen_once_a_block_in_its_order(trunk: str, part: Any) -> None:
    network, batch = tiny_pnn(trunk=trunk), tiny_subject().batches[0]
    seen: list[tuple[int, tuple[int, ...]]] = []
    with observed(network, part, lambda step, output: seen.append((step, tuple(output.shape)))):
        states(network, batch)
        states(network, batch)  # counted anew
    blocks = 2 if trunk == "hierarchical" else 1
    shape = (len(batch.inputs), LENGTH, 3, 5) if part == "heads" else (len(batch.inputs), LENGTH, WIDTH)
    assert seen == [(step, shape) for step in range(3) for _ in range(blocks)] * 2


def test_the_update_is_gate_times_proposal() -> None:
    network, batch = tiny_pnn(), tiny_subject().batches[0]
    gates: list[torch.Tensor] = []
    proposals: list[torch.Tensor] = []
    with observed(network, "gate", lambda _, gate: gates.append(gate)):
        with observed(network, "proposal", lambda _, proposal: proposals.append(proposal)):
            found = states(network, batch, steps=5)
    torch.testing.assert_close(found[1:] - found[:-1], torch.stack(gates) * torch.stack(proposals))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_change_at_one_step_leaves_earlier_states_alone(trunk: str) -> None:
    network, batch = tiny_pnn(trunk=trunk), tiny_subject().batches[0]
    plain = states(network, batch)
    with changed(network, "proposal", lambda step, output: output * 0.5 if step == 1 else output):
        found = states(network, batch)
    assert torch.equal(found[:2], plain[:2]) and not torch.allclose(found[2], plain[2])
    assert torch.equal(states(network, batch), plain)


def test_silencing_a_head_is_zeroing_its_output_weights() -> None:
    network, subject = tiny_pnn(), tiny_subject()

    def silenced(step: int, heads: torch.Tensor) -> torch.Tensor:
        return torch.cat([heads[:, :, :1], torch.zeros_like(heads[:, :, 1:2]), heads[:, :, 2:]], 2)

    with changed(network, "heads", silenced):
        found = predictions(network, subject.batches)
    with torch.no_grad():
        network.pnn.refiner.attention.o_proj.weight[:, 5:10] = 0
    assert found.loss == pytest.approx(predictions(network, subject.batches).loss)
