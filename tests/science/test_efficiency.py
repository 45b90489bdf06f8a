"""The cost of a network, against the arithmetic of pnn.md, sections 1 and 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raysweep.cli import main
from raysweep.errors import ModelError
from raysweep.job.spec import ModelSpec
from raysweep.science.pnn.efficiency import BERT, MODEL, Efficiency, ablations, cost, efficiency

WIDTH, INNER, VOCABULARY, WINDOW, LABELLED = 768, 2048, 30_522, 128, 0.15


def spec(name: str = "pnn-base", **options: Any) -> ModelSpec:
    return ModelSpec(name=name, **options)


def step_flops(gated: bool) -> int:
    """Return the operations per token of one step: four projections, feed-forward, attention, and the gate's two."""
    weights = 4 * WIDTH**2 + 2 * WIDTH * INNER + (2 * WIDTH**2 if gated else 0)
    return 2 * weights + 4 * WINDOW * WIDTH


HEAD = LABELLED * 2 * WIDTH * VOCABULARY


@pytest.fixture(scope="module")
def published() -> Efficiency:
    return efficiency(spec(), WINDOW)


def test_costs_of_the_published_network_are_those_counted_by_hand(published: Efficiency) -> None:
    found = published.rows[MODEL]
    assert (found.parameters, found.trunk) == (53_707_323, 6_695_169)
    assert found.vocabulary == 23_440_896 + 23_471_418
    assert found.forward_flops == pytest.approx(4 * step_flops(gated=True) + HEAD)
    assert found.training_flops == pytest.approx(3 * (4 * step_flops(gated=True) + 4 * HEAD))
    assert found.training_flops / 1e6 == pytest.approx(249.5, abs=0.1)


def test_baselines_are_the_published_bert_and_stacks_of_the_models_own_width(published: Efficiency) -> None:
    rows = published.rows
    assert (rows[BERT].parameters, rows[BERT].trunk) == (132_066_618, 85_054_464)
    layers, shared, one = (rows[name] for name in list(rows)[-3:])
    assert layers.trunk == 4 * shared.trunk == 4 * one.trunk
    assert layers.forward_flops == shared.forward_flops == pytest.approx(4 * step_flops(gated=False) + HEAD)
    assert one.training_flops == pytest.approx(3 * (step_flops(gated=False) + HEAD))
    assert rows[MODEL].trunk - rows["gate none"].trunk == 1_181_185
    assert rows["gate scalar"].trunk - rows["gate constant"].trunk == 1


def test_a_tied_vocabulary_counts_once_and_steps_cost_operations_but_no_parameters() -> None:
    tied, deeper = cost(spec(tie_word_embeddings=True), WINDOW), cost(spec(num_steps=8), WINDOW)
    assert tied.parameters == 30_266_427 and tied.vocabulary == 23_440_896 + VOCABULARY
    assert deeper.parameters == 53_707_323
    assert deeper.training_flops == pytest.approx(2 * cost(spec(), WINDOW).training_flops)


def test_no_size_next_to_a_matched_one_is_nearer(published: Efficiency) -> None:
    assert {match.equal_in for match in published.matches} == {"training_flops", "trunk"}
    for match in published.matches:
        if match.num_steps == 1 or match.baseline == "layer, shared":
            continue
        wanted = getattr(published.rows[MODEL], match.equal_in)

        def off(steps: int, width: int, match: Any = match, wanted: float = wanted) -> float:
            baseline = spec(trunk="layers", num_steps=steps, intermediate_size=width)
            return abs(float(getattr(cost(baseline, WINDOW), match.equal_in)) / wanted - 1)

        steps, width = match.num_steps, match.intermediate_size
        assert off(steps, width) == pytest.approx(abs(match.off))
        deeper, wider = (1, 0) if width == INNER else (0, 1)  # which of them was varied
        assert off(steps + deeper, width + wider) >= abs(match.off)
        assert min(steps - deeper, width - wider) == 0 or off(steps - deeper, width - wider) >= abs(match.off)


def test_operations_are_matched_to_a_promille_by_width_and_parameters_by_one_wide_layer(published: Efficiency) -> None:
    by = {(match.baseline, match.equal_in, match.num_steps): match for match in published.matches}
    assert abs(by["layers, unshared", "training_flops", 4].off) < 1e-3
    assert by["layers, unshared", "training_flops", 7].off == pytest.approx(0.044, abs=0.001)
    for name, steps in (("1 layer", 1), ("layer, shared", 4)):
        assert abs(by[name, "trunk", steps].off) < 1e-3 and by[name, "trunk", steps].intermediate_size == 2817
    assert ("layer, shared", "trunk", 7) not in by  # its parameters do not depend on its steps


def test_what_has_no_gate_has_no_gate_to_change() -> None:
    assert ablations(spec(trunk="layers")) == {}
    gates = ablations(spec(gate="none", num_steps=3))
    assert list(gates) == ["gate query_key", "gate constant", "gate scalar"]
    assert all(changed.options["num_steps"] == 3 for changed in gates.values())


def test_images_have_no_vocabulary() -> None:
    found = efficiency(spec("pnn-vision-nano"), 128).rows
    assert {row.vocabulary for row in found.values()} == {0}
    assert found[MODEL].trunk < found[BERT].trunk


def test_another_family_is_refused_with_the_sizes_there_are() -> None:
    with pytest.raises(ModelError, match=r"'gpt2-nano' is no size of PNN: .*Known: pnn-base"):
        efficiency(spec("gpt2-nano"), 128)


def test_the_command_prints_a_table_or_json_and_takes_settings(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("{name: j, model: {name: pnn-nano}, cycle: {baseline: {steps: 1, lr: 0.001}}}")
    table = CliRunner().invoke(main, ["analyze", "efficiency", str(job)])
    assert table.exit_code == 0 and "BERT, 12 layers" in table.stdout and "feed-forward width" in table.stdout
    assert table.stdout.splitlines()[-1].startswith("next:  raysweep plan ")
    changed = CliRunner().invoke(main, ["analyze", "efficiency", str(job), "--set", "model.num_steps=2", "--json"])
    assert json.loads(changed.stdout)["rows"].keys() >= {"this model", "gate none", "2 layers, unshared"}
    refused = CliRunner().invoke(main, ["analyze", "efficiency", str(job), "--set", "model.num_steps=0"])
    assert refused.exit_code == 2 and "model.num_steps = 0" in refused.stderr
