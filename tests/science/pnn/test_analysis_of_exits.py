"""Exit rules are compared with chance on the half of the sequences that no threshold was chosen on."""

from __future__ import annotations

import pytest
import torch
from support.subjects import tiny_pnn, tiny_subject

from raysweep.errors import NotApplicableError
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.science.pnn.analyses.exits import Analysis, halves_of


def test_the_two_halves_are_the_sequences_of_even_and_of_odd_number() -> None:
    batches = tiny_subject(sequences=21).batches
    assert [len(batch.labels) for batch in batches] == [16, 5]
    inputs = torch.cat([batch.inputs for batch in batches])
    for parity, half in enumerate(halves_of(batches)):
        numbers = [seed for _, seeds in half for seed in seeds]
        assert numbers == list(range(parity, 21, 2))
        assert torch.equal(torch.cat([batch.inputs for batch, _ in half]), inputs[numbers])
        for batch, _ in half:
            assert batch.labelled is not None and len(batch.labelled) == int((batch.labels != NO_LABEL).sum())
            assert (batch.labels.flatten()[batch.labelled] != NO_LABEL).all()


def test_it_measures_every_rule_that_the_network_has() -> None:
    found = Analysis()(tiny_subject(sequences=12))
    exits = {point["exit"] for point in found.figures["points"]}
    assert exits == {"none", "delta_norm", "patience", "kl", "max_probability"}
    assert found.verdict.startswith("Saved against 3 steps: none ")
    assert {panel.x_label for panel in found.panels} == {"FLOPs per token", "mean steps"}
    assert all(one.count == 6 for one in found.comparisons)


def test_separate_layers_have_no_exits() -> None:
    with pytest.raises(NotApplicableError, match="'layers'"):
        Analysis()(tiny_subject(tiny_pnn(trunk="layers")))
