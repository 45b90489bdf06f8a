"""What a trial learns from: tables of sentences, images, special tokens, and data that does not suit a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raysweep.errors import DataError, UsageError
from raysweep.job.jobfile import check_job
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.trial.data.examples import Dataset, build_task, load_dataset
from raysweep.trial.data.labelled import Labelled, read_sentences
from raysweep.trial.forecast.preflight import preflight

SENTENCES = [(f"number {number} is {'odd' if number % 2 else 'even'}", number % 2) for number in range(400)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built is built by these tests."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


def write_table(path: Path, rows: list[tuple[str, Any]], header: str = "sentence\tlabel\n") -> Path:
    path.write_text(header + "".join(f"{sentence}\t{label}\n" for sentence, label in rows))
    return path


def sentences(name: Path | str, **data: Any) -> Dataset:
    model = ModelSpec(name="bert-nano", task="sequence_classification")
    return load_dataset(DataSpec(name=str(name), seq_len=12, **data), model)


def text_of(dataset: Dataset, row: np.ndarray, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(row[3 : 3 + row[1]].tolist(), skip_special_tokens=True)


# Sentences.


def table(path: Path, content: str, **data: Any) -> list[Labelled]:
    path.write_text(content)
    return read_sentences(path, DataSpec.model_validate({"name": str(path), **data}))


@pytest.mark.parametrize(
    ("file", "content", "header"),
    [
        ("a.tsv", "sentence\tlabel\na \"b\tgood\nc, d\tbad\n", True),
        ("a.tsv", "label\tidx\tsentence\ngood\t0\ta \"b\nbad\t1\tc, d\n", True),
        ("a.tsv", "a \"b\tgood\nc, d\tbad\n", False),
        ("a.tsv", "gj04\tgood\t\ta \"b\ngj04\tbad\t*\tc, d\n", False),
        ("a.csv", 'label,sentence\ngood,"a ""b"\nbad,"c, d"\n', True),
    ],
)  # fmt: skip
def test_a_table_is_read_with_a_header_or_as_sst2_and_cola_are(
    tmp_path: Path, file: str, content: str, header: bool
) -> None:
    assert table(tmp_path / file, content, header=header) == [("good", 'a "b', None), ("bad", "c, d", None)]


def test_a_quotation_mark_of_a_tsv_is_text(tmp_path: Path) -> None:
    found = table(tmp_path / "a.tsv", '"so" he said\t1\n"and\t0\n', header=False)
    assert found == [("1", '"so" he said', None), ("0", '"and', None)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("a\tb\tc\nd\te\tf\n", "names no column of texts .* data.header: false"),
        ("sentence\tlabel\nfine\t1\nno label\n", "row 3: 1 cells, but the first line has 2"),
        ("sentence\tlabel\nfine\t1\nno label\t \n", "row 3: no sentence with a label"),
        ("sentence\tlabel\n \t1\n", "row 2"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_row(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        table(tmp_path / "a.tsv", content)


def test_a_table_without_splits_is_split_by_the_hash_of_its_sentences(tmp_path: Path) -> None:
    found = sentences(write_table(tmp_path / "all.tsv", SENTENCES))
    train, held_out = (  # rows are unique here, so equal tokens are equal sentences
        {tuple(row[3:]) for row in rows} for rows in (found.train, found.evaluation)
    )
    assert train.isdisjoint(held_out) and 0 < len(held_out) < 100
    assert found.facts.num_classes == 2


def test_a_folder_keeps_its_own_splits_and_a_job_may_name_others(tmp_path: Path) -> None:
    for name, part in (("train", SENTENCES[:300]), ("dev", SENTENCES[300:350]), ("other", SENTENCES[350:])):
        write_table(tmp_path / f"{name}.tsv", part)
    assert (len(sentences(tmp_path).train), len(sentences(tmp_path).evaluation)) == (300, 50)
    assert len(sentences(tmp_path, evaluate="other", eval_tokens=12 * 20).evaluation) == 20
    with pytest.raises(DataError, match="data.evaluate = 'dve'"):
        sentences(tmp_path, evaluate="dve")


def test_a_row_is_the_label_the_number_of_tokens_and_the_padded_tokens(tmp_path: Path) -> None:
    write_table(tmp_path / "dev.tsv", [("one", "b"), ("two two two two two two two two two two two two two", "a")])
    write_table(tmp_path / "train.tsv", [("x", "a"), ("y", "b")] * 10)
    found = sentences(tmp_path)
    short, long = found.evaluation
    assert short[0] == 1 and long[0] == 0 and found.evaluation.shape == (2, 3 + 12)
    assert short[1] < 12 and long[1] == 12  # cut
    assert (short[3 + short[1] :] == found.facts.pad_token).all() and found.facts.pad_token not in short[3:][: short[1]]
    assert short[3] == long[3] == 0  # the class token
    batch = build_task(ModelSpec(name="bert-nano", task="sequence_classification"), found.facts).batch(
        found.evaluation, [0, 1]
    )
    assert batch.attention_mask is not None and batch.attention_mask.sum(1).tolist() == [short[1], 12]
    assert batch.labels.tolist() == [1, 0] and batch.inputs.shape == (2, 12)


def test_labels_that_training_never_shows_and_a_single_class_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", SENTENCES[:20])
    write_table(tmp_path / "dev.tsv", [("what", 7)])
    with pytest.raises(DataError, match="the label '7' of dev.tsv is none of the training labels: 0, 1"):
        sentences(tmp_path)
    for name in ("train", "dev"):
        write_table(tmp_path / f"{name}.tsv", [(f"what of {name}", 7)])
    with pytest.raises(DataError, match="nothing to tell apart"):
        sentences(tmp_path)


@pytest.mark.parametrize(("folder", "splits", "count"), [
    ("sst2", {}, 6919), ("cola", {"evaluate": "in_domain_dev", "test": "out_of_domain_dev"}, 8551),
])  # fmt: skip
def test_real_tables_are_read_whole(shared_data: Path, folder: str, splits: dict[str, str], count: int) -> None:
    found = sentences(shared_data / folder, header=False, **splits)
    assert found.test is not None and len(found.test) > 500
    assert abs(len(found.train) - count) <= 1 and found.facts.num_classes == 2
    assert 0.3 < found.train[:, 0].mean() < 0.8


# Images.


def test_digits_are_real_disjoint_and_of_all_classes() -> None:
    found = load_dataset(DataSpec(name="digits"), ModelSpec(name="vit-nano"))
    assert len(found.train) + len(found.evaluation) == 1797 and 120 < len(found.evaluation) < 240
    images = [{tuple(row[1:]) for row in rows} for rows in (found.train, found.evaluation)]
    assert images[0].isdisjoint(images[1])
    for rows in (found.train, found.evaluation):
        assert rows.shape[1] == 65 and set(rows[:, 0]) == set(range(10)) and rows.max() == 16
    with pytest.raises(DataError, match="data.train = 'a': .* one set without splits"):
        load_dataset(DataSpec(name="digits", train="a"), ModelSpec(name="vit-nano"))


# Special tokens.


def tokenizer_with(folder: Path, **special: str) -> str:
    words = ["<unk>", *special.values(), *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special).save_pretrained(folder)
    return str(folder)


def masked(name: Path, tokenizer: str | None = None) -> Dataset:
    return load_dataset(DataSpec(name=str(name), seq_len=8, tokenizer=tokenizer), ModelSpec(name="bert-nano"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for name, times in (("train", 30), ("valid", 20)):
        (tmp_path / "corpus" / f"{name}.txt").write_text("a b c d e f g h\n" * times)
    return tmp_path / "corpus"


def test_a_tokenizer_trained_for_an_encoder_has_special_tokens_that_no_window_holds(corpus: Path) -> None:
    found = masked(corpus)
    assert (found.facts.pad_token, found.facts.mask_token) == (1, 2)
    assert found.train.min() > 2
    plain = load_dataset(DataSpec(name=str(corpus), seq_len=8), ModelSpec(name="gpt2-nano"))
    assert plain.facts.mask_token is None and plain.fingerprint != found.fingerprint


def test_a_pretrained_tokenizer_brings_its_own_mask(corpus: Path, tmp_path: Path) -> None:
    name = tokenizer_with(tmp_path / "own", mask_token="[MASK]", pad_token="[PAD]")
    assert (masked(corpus, name).facts.mask_token, masked(corpus, name).facts.pad_token) == (1, 2)
    assert not np.isin(masked(corpus, name).train, [1, 2]).any()


def test_a_tokenizer_without_a_mask_or_padding_is_refused_where_one_is_needed(corpus: Path, tmp_path: Path) -> None:
    name = tokenizer_with(tmp_path / "none")
    with pytest.raises(DataError, match=f"'masked_lm' needs a mask token, and the tokenizer '{name}' has none"):
        masked(corpus, name)
    with pytest.raises(DataError, match="has no padding token"):
        sentences(write_table(tmp_path / "all.tsv", SENTENCES), tokenizer=name)


# What does not fit together.


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ({"name": "gpt2-nano"}, "digits", r"holds images, but model.name = 'gpt2-nano' learns causal_lm from text"),
        ({"name": "vit-nano"}, "python-docs", r"holds no images\. Give 'digits'"),
        ({"name": "bert-nano", "task": "sequence_classification"}, "python-docs", "holds no labelled sentences"),
        ({"name": "bert-nano", "task": "sequence_classification"}, "digits", "holds images"),
        ({"name": "bert-nano", "task": "image_classification"}, "digits", "cannot learn that"),
        ({"name": "gpt2-nano", "task": "masked_lm"}, "python-docs", "cannot learn that"),
    ],
)
def test_a_job_whose_parts_do_not_fit_is_refused_before_anything_starts(
    model: dict[str, str], data: str, said: str
) -> None:
    job = {"name": "j", "model": model, "data": {"name": data}, "cycle": {"baseline": {"steps": 1, "lr": 0.1}}}
    with pytest.raises(UsageError, match=said):
        preflight(check_job(job, "j.yaml"))
