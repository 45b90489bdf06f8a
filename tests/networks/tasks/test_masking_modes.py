"""What is hidden: both ways of masking, special tokens never, and held-out masks that nothing moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.helpers import run_all
from support.jobs import quick_plan

from raysweep.contracts import Batch, Examples, Facts
from raysweep.errors import DataError
from raysweep.job import registry
from raysweep.job.jobfile import check_job
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.trial.data.examples import Dataset, build_task, load_dataset
from raysweep.trial.data.trial_data import trial_data, trial_task
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.measures.evaluation import held_out_sha256

VOCABULARY, SPECIAL, MASK = 50, (0, 1, 7, 49), 49
UNKNOWN = 7
MODES: list[Any] = ["bert", "mask"]


def facts(masking: Any = "bert", special: tuple[int, ...] = SPECIAL) -> Facts:
    return Facts(vocab_size=VOCABULARY, mask_token=MASK, special_tokens=special, masking=masking)


def hidden(examples: Examples, facts: Facts, seed: int = 0) -> Batch:
    return registry.load("tasks", "masked_lm")(facts=facts).batch(examples, range(seed, seed + len(examples)))


def some_windows(count: int, length: int, special_share: float) -> Examples:
    """Return windows in which special and unknown tokens stand among the others, in some many, in some none."""
    generator = np.random.default_rng(0)
    words = generator.choice(np.setdiff1d(np.arange(VOCABULARY), SPECIAL), size=(count, length))
    share = generator.uniform(0, 2 * special_share, size=(count, 1))
    return np.where(generator.random((count, length)) < share, generator.choice(SPECIAL, size=words.shape), words)


# The modes.


def test_in_mask_mode_every_chosen_token_is_the_mask_and_in_bert_mode_eight_in_ten() -> None:
    windows = some_windows(300, 60, 0.0)
    for mode, share in (("mask", 1.0), ("bert", 0.8 + 0.1 / VOCABULARY)):
        batch = hidden(windows, facts(mode))
        chosen = batch.labels != NO_LABEL
        assert int(chosen.sum()) == 300 * 9
        assert (batch.inputs[chosen] == MASK).double().mean() == pytest.approx(share, abs=0.03 * (mode == "bert"))
        assert np.array_equal(batch.inputs, np.where(chosen, batch.inputs, windows))


def test_both_modes_ask_for_the_same_tokens() -> None:
    windows = some_windows(20, 40, 0.2)
    assert (hidden(windows, facts("bert")).labels == hidden(windows, facts("mask")).labels).all()


@pytest.mark.parametrize("mode", MODES)
def test_special_and_unknown_tokens_are_never_hidden_and_every_other_position_has_its_turn(mode: str) -> None:
    windows = some_windows(40, 30, 0.3)
    special = np.isin(windows, SPECIAL)
    asked = np.zeros(windows.shape, int)
    for seed in range(0, 4000, 40):
        batch = hidden(windows, facts(mode), seed)
        labels = batch.labels.numpy()
        assert (labels[special] == NO_LABEL).all()
        assert (batch.inputs.numpy()[special] == windows[special]).all()
        asked += labels != NO_LABEL
        counts = (labels != NO_LABEL).sum(1)
        assert counts.tolist() == [max(1, round(0.15 * count)) for count in (~special).sum(1)]
    assert (asked[~special] > 0).all()
    assert len(set((~special).sum(1))) > 5  # windows with unequally many labels


def test_a_window_of_special_tokens_alone_has_no_label() -> None:
    windows = np.array([[0, 1, 7, 7, 49], [0, 1, 7, 5, 49]])
    batch = hidden(windows, facts())
    assert (batch.labels != NO_LABEL).sum(1).tolist() == [0, 1]
    assert batch.labels[1, 3] == 5 and batch.labelled is not None and batch.labelled.tolist() == [8]


# From a job.


def load(name: Path | str, tokenizer: str | None = "wordpiece", model: str = "pnn-nano", **data: Any) -> Dataset:
    return load_dataset(DataSpec(name=str(name), seq_len=8, tokenizer=tokenizer, **data), ModelSpec(name=model))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    words = " ".join(f"{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(300))
    (folder / "train.txt").write_text(words + "\n")
    (folder / "valid.txt").write_text(words[:300] + "\n" + "ж " * 24 + words[:300] + "\n")
    yield folder


@pytest.mark.parametrize("mode", MODES)
def test_a_job_says_how_tokens_are_hidden(mode: str, corpus: Path) -> None:
    found = load(corpus, masking=mode)
    task = build_task(ModelSpec(name="pnn-nano"), found.facts)
    batch = task.batch(found.evaluation, range(len(found.evaluation)))
    chosen = batch.labels != NO_LABEL
    assert found.facts.mask_token is not None
    share = (batch.inputs[chosen] == found.facts.mask_token).double().mean()
    assert (share == 1) == (mode == "mask") and share > 0.5
    assert load(corpus).facts.masking == "bert"


@pytest.mark.parametrize("model", ["gpt2-nano", "vit-nano"])
def test_a_way_of_masking_is_refused_where_nothing_is_hidden(model: str, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"data.masking = 'mask': .* hides no tokens. Remove data.masking"):
        load("digits" if model == "vit-nano" else corpus, None, model, masking="mask")


def test_windows_of_unknown_words_alone_are_left_out(corpus: Path) -> None:
    found = load(corpus)
    unknown = found.facts.special_tokens[1]
    assert (found.evaluation == unknown).any()  # such words stand beside known ones
    assert not (found.evaluation == unknown).all(1).any()
    without = load(corpus, model="pnn-nano", tokenizer=None)  # bytes know every word
    assert not np.isin(without.evaluation, without.facts.special_tokens).any()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_text_of_special_tokens_alone_is_refused_before_anything_starts(split: str, corpus: Path) -> None:
    (corpus / f"{split}.txt").write_text("[MASK] [PAD] [UNK] " * 60)
    job = {
        "name": "j", "model": {"name": "pnn-nano"}, "cycle": {"baseline": {"steps": 1, "lr": 0.1}},
        "data": {"name": str(corpus), "tokenizer": "wordpiece", "seq_len": 8},
    }  # fmt: skip
    key = {"train": "train", "valid": "choose"}[split]
    with pytest.raises(DataError, match=f"its {key} split holds special or unknown tokens alone"):
        preflight(check_job(job, "j.yaml"))


# Held-out masks.


def test_held_out_masks_follow_from_the_data_and_each_examples_place_alone() -> None:
    plan = quick_plan(model__name="pnn-nano")
    task, examples = trial_task(plan), trial_data(plan).evaluation
    known = held_out_sha256(examples, task)
    assert known == held_out_sha256(examples.copy(), task)
    assert known == held_out_sha256(trial_data(quick_plan(model__name="pnn-nano", seed=5)).evaluation, task)
    others = [
        held_out_sha256(examples[::-1], task),
        held_out_sha256(examples[:-1], task),
        held_out_sha256(examples, build_task(ModelSpec(name="pnn-nano"), replace(task.facts, masking="mask"))),
    ]
    assert len({known, *others}) == 4


def test_every_record_says_what_was_hidden(tmp_path: Path) -> None:
    plans = [quick_plan(model__name="pnn-nano", cycle__cycles=1, training__batch_size=size) for size in (4, 6)]
    records = [record for number, plan in enumerate(plans) for record in run_all(plan, tmp_path / str(number))]
    expected = held_out_sha256(trial_data(plans[0]).evaluation, trial_task(plans[0]))
    assert {record.held_out_sha256 for record in records} == {expected}
