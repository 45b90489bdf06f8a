"""Where text comes from: splits that share no block, files and folders as named, hub data sets, one clear refusal."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from raysweep.errors import DataError
from raysweep.job.names import HUB
from raysweep.job.spec import DataSpec
from raysweep.trial.data import hub as hub_module
from raysweep.trial.data.corpora import BLOCK_CHARACTERS, blocks_of, load_splits
from raysweep.trial.data.splits import Split, held_out_corpus


def prose(num_lines: int, start: int = 0) -> str:
    return "".join(
        f"Line {number} of a text about nothing but the number {number}.\n" for number in range(start, num_lines)
    )


def split_by_hash(text: str) -> tuple[str, str]:
    whole = Split(content=list(blocks_of(text, BLOCK_CHARACTERS)), origin="a text")
    corpus = held_out_corpus(whole, lambda block: block.strip().encode()).with_contents("".join)
    return corpus.train.content, corpus.choose.content


def texts(**data: object) -> tuple[str, str]:
    corpus = load_splits(DataSpec.model_validate(data))
    return corpus.train.content, corpus.choose.content


def refusal(**data: object) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(DataSpec.model_validate(data))
    return str(caught.value)


# Splitting by hash


def test_the_two_splits_share_no_block_and_lose_none() -> None:
    text = prose(5000)
    train, evaluation = split_by_hash(text)
    lines = text.splitlines()
    assert set(train.splitlines()).isdisjoint(evaluation.splitlines())
    assert sorted(train.splitlines() + evaluation.splitlines()) == sorted(lines)
    assert 0.02 < len(evaluation) / len(text) < 0.25


def test_the_split_is_the_same_every_time_and_everywhere() -> None:
    train, evaluation = split_by_hash(prose(1000))
    assert split_by_hash(prose(1000)) == (train, evaluation)
    assert (len(train), len(evaluation)) == (44_711, 8_069)  # no seed, no platform


def test_identical_blocks_land_on_the_same_side() -> None:
    line = "x" * (BLOCK_CHARACTERS - 8)
    blocks = [f"{number:06d} {line}\n" for number in range(40)]
    train, evaluation = split_by_hash("".join(blocks * 3))
    assert train and evaluation
    for block in blocks:
        assert (train.count(block), evaluation.count(block)) in ((3, 0), (0, 3))


def test_blocks_are_whole_lines() -> None:
    blocks = list(blocks_of(prose(300), 500))
    assert "".join(blocks) == prose(300)
    assert all(block.endswith("\n") for block in blocks)
    assert all(500 <= len(block) < 600 for block in blocks[:-1])


def test_a_text_without_line_ends_is_split_all_the_same() -> None:
    text = " ".join(f"word{number}" for number in range(20_000))
    train, evaluation = split_by_hash(text)
    assert len(train) + len(evaluation) == len(text)
    assert 0.02 < len(evaluation) / len(text) < 0.25
    assert max(map(len, blocks_of(text, BLOCK_CHARACTERS))) < 2 * BLOCK_CHARACTERS


def test_the_embedded_corpus_needs_nothing() -> None:
    train, evaluation = texts()
    assert len(train) > 300_000 and len(evaluation) > 10_000


# Files


def test_a_text_file_is_split_by_hash(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text(prose(2000), encoding="utf-8")
    assert texts(name=str(file)) == split_by_hash(prose(2000))


def test_a_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corpus.txt").write_text(prose(2000), encoding="utf-8")
    assert texts(name="~/corpus.txt") == split_by_hash(prose(2000))


@pytest.mark.parametrize("content", ["", " \n\t\n  "])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content)
    assert refusal(name=str(file)) == f"data file {str(file)!r} is empty."


def test_a_file_that_is_not_utf_8_is_refused_with_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"all is well, then caf\xe9 comes")
    assert "is not UTF-8 text (byte 21)" in refusal(name=str(file))


def test_a_file_too_short_for_a_held_out_block_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("one line\n")
    assert "split holds no text" in refusal(name=str(file))


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "closed.txt"
    file.write_text(prose(2000))

    def refuse(*args: object, **options: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read (Permission denied)" in refusal(name=str(file))


@pytest.mark.parametrize("name", ["./no/such", "/no/such/file", "~/no-such", "../no-such.txt", "no-such.txt"])
def test_a_path_that_does_not_exist_is_never_taken_for_a_hub_name(name: str) -> None:
    assert refusal(name=name) == f"data.name = {name!r}: no such file or folder."


@pytest.mark.parametrize("key", ["train", "evaluate"])
@pytest.mark.parametrize("name", ["python-docs", "file"])
def test_a_split_of_a_text_without_splits_is_refused(tmp_path: Path, key: str, name: str) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text(prose(2000))
    message = refusal(name=str(file) if name == "file" else name, **{key: "valid"})
    assert f"data.{key} = 'valid'" in message and "without splits" in message


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, stem in enumerate(("test", "train", "valid")):
        (tmp_path / f"{stem}.txt").write_text(prose(100 * number + 100, 100 * number), encoding="utf-8")
    return tmp_path


def test_a_folder_keeps_its_own_splits(folder: Path) -> None:
    assert texts(name=str(folder)) == (prose(200, 100), prose(300, 200))


def test_splits_of_a_folder_are_named_by_file(folder: Path) -> None:
    assert texts(name=str(folder), train="test", evaluate="train") == (prose(100), prose(200, 100))
    assert texts(name=str(folder), evaluate="test")[1] == prose(100)


def test_a_folder_with_training_text_alone_is_split_by_hash(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(prose(2000))
    assert texts(name=str(tmp_path)) == split_by_hash(prose(2000))


def test_a_folder_without_splits_is_split_by_hash(tmp_path: Path) -> None:
    for stem, first in (("b", 1000), ("a", 0)):
        (tmp_path / f"{stem}.txt").write_text(prose(first + 1000, first))
    parts = [split_by_hash(prose(1000)), split_by_hash(prose(2000, 1000))]
    assert texts(name=str(tmp_path)) == tuple("".join(part) for part in zip(*parts, strict=True))


def test_a_split_that_a_folder_lacks_is_refused_with_the_nearest(folder: Path) -> None:
    assert "data.evaluate = 'vald'" in (message := refusal(name=str(folder), evaluate="vald"))
    assert "Did you mean 'valid'?" in message and "Known: test, train, valid." in message


def test_evaluating_on_the_training_split_is_refused(folder: Path) -> None:
    assert "is the split that is trained on" in refusal(name=str(folder), train="valid", evaluate="valid")


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n")
    assert "names no column of texts" in refusal(name=str(tmp_path))


def test_an_empty_split_is_refused_by_name(folder: Path) -> None:
    (folder / "valid.txt").write_text("\n")
    assert refusal(name=str(folder)) == f"data file {str(folder / 'valid.txt')!r} is empty."


def test_wikitext_2_trains_on_one_file_and_evaluates_on_the_other(shared_data: Path) -> None:
    wikitext = shared_data / "wikitext-2"
    train, evaluation = texts(name=str(wikitext), train="test", evaluate="valid")
    assert train == (wikitext / "test.txt").read_text(encoding="utf-8")
    assert evaluation == (wikitext / "valid.txt").read_text(encoding="utf-8")


# The hub


@pytest.mark.parametrize("name", ["wikitext_2", "nobody/nothing", "a/b/c", "x" * 200])
def test_an_unknown_name_without_a_hub_is_refused_quickly_and_with_the_known_names(name: str) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    started = time.monotonic()
    message = refusal(name=name)
    assert time.monotonic() - started < 20  # the first call imports datasets
    assert "neither a file or folder here nor a data set that can be loaded" in message
    assert "Known: bookcorpus, c4, python-docs, tiny_shakespeare, wikitext-103, wikitext-2." in message
    assert ("Did you mean 'wikitext-2'?" in message) == (name == "wikitext_2")


@pytest.mark.parametrize("data", [{"name": "wikitext-2"}, {"name": "c4", "max_tokens": 1000}])
def test_a_known_name_without_a_hub_is_refused_with_the_way_out(data: dict[str, object]) -> None:
    message = refusal(**data)
    assert "Couldn't reach" in message and "Without a network, give a text file" in message


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: `datasets` loads from it as it would from there."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def publish(file: Path, texts: Sequence[str | None], column: str = "text") -> None:
    import datasets

    file.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict({"id": list(range(len(texts))), column: texts})
    rows.to_parquet(file) if file.suffix == ".parquet" else rows.to_json(file)


def serve(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    monkeypatch.setitem(HUB, name, (str(path), None, None, "text"))


def test_a_hub_data_set_keeps_its_splits(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub / "train.jsonl", ["one\n", "two", "", "three\n"])  # wikitext ends its lines, others do not
    publish(hub / "validation.jsonl", ["four"])
    publish(hub / "test.jsonl", ["five"])
    serve(monkeypatch, "wikitext-2", hub)
    assert texts(name="wikitext-2") == ("one\ntwo\n\nthree\n", "four\n")
    assert texts(name="wikitext-2", train="test")[0] == "five\n"
    assert texts(name="wikitext-2", evaluate="test")[1] == "five\n"


def test_the_hub_s_parquet_copy_of_a_scripted_data_set_is_readable(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, text in (("train", prose(50)), ("test", "t"), ("validation", "v")):
        publish(hub / "default" / split / "0000.parquet", [text])  # as on the branch refs/convert/parquet
    serve(monkeypatch, "tiny_shakespeare", hub)
    assert texts(name="tiny_shakespeare") == (prose(50), "v\n")


def test_any_data_set_with_a_text_column_can_be_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub / "someone" / "corpus" / "train.jsonl", prose(2000).splitlines(keepends=True))
    import datasets

    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, *rest, **options: load(str(hub / path), *rest, **options)
    )
    assert texts(name="someone/corpus") == split_by_hash(prose(2000))  # it has a training split alone


def test_rows_without_text_are_left_out(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub / "train.jsonl", ["one", None, "two"])
    publish(hub / "validation.jsonl", ["three"])
    serve(monkeypatch, "wikitext-2", hub)
    assert texts(name="wikitext-2") == ("one\ntwo\n", "three\n")


def test_a_data_set_without_a_text_column_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        publish(hub / f"{split}.jsonl", ["a"], column="sentence")
    serve(monkeypatch, "wikitext-2", hub)
    assert refusal(name="wikitext-2") == "data.name = 'wikitext-2': no column 'text'; it has id, sentence."


def test_a_column_that_holds_no_text_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        publish(hub / f"{split}.jsonl", ["a"], column="sentence")
    monkeypatch.setitem(HUB, "wikitext-2", (str(hub), None, None, "id"))
    assert "column 'id' holds int, not text" in refusal(name="wikitext-2")


def test_a_split_that_a_data_set_lacks_is_refused_with_the_nearest(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "validation"):
        publish(hub / f"{split}.jsonl", ["a"])
    serve(monkeypatch, "wikitext-2", hub)
    assert "Did you mean 'validation'?" in refusal(name="wikitext-2", evaluate="validatoin")


def test_a_streamed_data_set_is_read_only_as_far_as_needed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub / "train.jsonl", [f"document {number:04d} " * 10 for number in range(1000)])
    publish(hub / "validation.jsonl", ["held out"])
    serve(monkeypatch, "c4", hub)
    train, evaluation = texts(name="c4", max_tokens=400)
    assert 400 * hub_module.CHARACTERS_PER_TOKEN <= len(train) < 400 * hub_module.CHARACTERS_PER_TOKEN + 200
    assert train.startswith("document 0000 ")
    assert evaluation == "held out\n"


def test_a_streamed_data_set_is_not_evaluated_on_its_training_split() -> None:
    assert "is the split that is trained on" in refusal(name="c4", max_tokens=400, evaluate="train")
    assert "Known: train, validation." in refusal(name="c4", max_tokens=400, evaluate="test")


def test_a_stream_that_breaks_off_is_one_clear_error(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub / "train.jsonl", ["fine"] * 3)
    publish(hub / "validation.jsonl", ["fine"])
    serve(monkeypatch, "c4", hub)

    def broken(*args: object) -> object:
        yield "a"
        raise ConnectionError("the line went dead")

    monkeypatch.setattr(hub_module, "_texts", broken)
    assert "ConnectionError: the line went dead" in refusal(name="c4", max_tokens=400)
