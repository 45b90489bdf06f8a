"""Which file of a folder belongs to which split, by its name; nothing hidden is read, and no split is in two places."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raysweep.errors import DataError
from raysweep.job.spec import DataSpec
from raysweep.trial.data import files as files_module
from raysweep.trial.data.corpora import check_there, load_splits


def folder(root: Path, *names: str) -> Path:
    """Write files that each hold their own name, in many lines."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"this is {name}\n" * (200 + len(name)), encoding="utf-8")
    return root


def read(root: Path, **data: object) -> dict[str, list[str]]:
    """Return the files of each split, and check that its text is theirs."""
    corpus = load_splits(DataSpec.model_validate({"name": str(root), **data}))
    found = {
        name: [str(Path(file).relative_to(root)) for file in split.files] for name, split in corpus.named().items()
    }
    for name, split in corpus.named().items():
        assert set(split.content.splitlines()) <= {f"this is {file}" for file in found[name]}
    return {**found, "left out": list(corpus.left_out)}


def refusal(root: Path, **data: object) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(DataSpec.model_validate({"name": str(root), **data}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "choose", "test"),
    [
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("Train.txt", "Valid.txt", "Test.txt"),
        ("TRAIN.TXT", "VAL.TXT", "TEST.TXT"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
        ("training.txt", "development.txt", "held-out.txt"),
        ("corpus_train_v2.txt", "corpus_dev_v2.txt", "corpus_heldout_v2.txt"),
        ("training-set.txt", "eval-set.txt", "testing-set.txt"),
        ("train/a.txt", "validation/a.txt", "test/a.txt"),
        ("data/Train/deep/a.txt", "data/Dev/deep/a.txt", "data/Test/deep/a.txt"),
        ("train-00000-of-00001.txt", "evaluation-00000-of-00001.txt", "test-00000-of-00001.txt"),
    ],
)
def test_splits_are_known_by_their_names(tmp_path: Path, train: str, choose: str, test: str) -> None:
    found = read(folder(tmp_path, train, choose, test))
    assert found == {"train": [train], "choose": [choose], "test": [test], "left out": []}


def test_parts_of_a_split_and_files_of_a_folder_are_read_together(tmp_path: Path) -> None:
    parts = [f"train-0000{part}-of-00003.txt" for part in range(3)]
    inner = ["test/a.txt", "test/b/c.txt"]
    assert read(folder(tmp_path, *parts, "dev.txt", *inner)) == {
        "train": parts, "choose": ["dev.txt"], "test": inner, "left out": [],
    }  # fmt: skip


def test_a_test_split_is_never_chosen_by(tmp_path: Path) -> None:
    """Without a split to choose by, that is held out of the training split."""
    root = folder(tmp_path, "train.txt", "test.txt")
    (root / "train.txt").write_text("".join(f"line {number} to be trained on\n" for number in range(3000)))
    corpus = load_splits(DataSpec(name=str(root)))
    assert set(corpus.choose.content.splitlines()).isdisjoint(corpus.train.content.splitlines())
    assert "train.txt" in corpus.choose.origin and corpus.test is not None
    assert set(corpus.test.content.splitlines()) == {"this is test.txt"}


def test_hidden_files_and_what_programs_leave_behind_are_not_read(tmp_path: Path) -> None:
    hidden = [".train.txt.swp.txt", ".ipynb_checkpoints/train.txt", "__MACOSX/train.txt", ".git/test.txt"]
    root = folder(tmp_path, "train.txt", "valid.txt", *hidden)
    (root / ".broken.txt").write_bytes(b"\xff\xfe\x00")
    (root / "train.txt~").write_bytes(b"\xff")
    assert read(root) == {"train": ["train.txt"], "choose": ["valid.txt"], "left out": []}


def test_what_belongs_to_no_split_is_left_out_and_said(tmp_path: Path) -> None:
    assert read(folder(tmp_path, "train.txt", "valid.txt", "notes.txt"))["left out"] == ["notes.txt"]


def test_a_folder_without_a_training_split_is_not_thrown_together(tmp_path: Path) -> None:
    root = folder(tmp_path, "valid.txt", "test.txt")
    assert "has no split to train on, only test, valid. Name one with data.train" in refusal(root)
    assert read(root, train="test") == {"train": ["test.txt"], "choose": ["valid.txt"], "left out": []}


def test_a_job_names_a_split_by_its_file_or_by_another_word_for_it(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.train.txt", "a.valid.txt", "a.test.txt", "extra.txt")
    swapped = {"train": ["a.test.txt"], "choose": ["a.valid.txt"], "left out": ["a.train.txt", "extra.txt"]}
    assert read(root, train="a.test") == read(root, train="test", evaluate="dev") == swapped
    assert read(root, test="extra")["test"] == ["extra.txt"]
    assert "data.test = 'a.train' is the split that is trained on" in refusal(root, test="a.train")
    assert "data.test = 'a.valid' is the split that is chosen by" in refusal(root, evaluate="a.valid", test="dev")
    assert "Did you mean 'extra'?" in refusal(root, evaluate="extr")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.txt", "valid.txt", "dev.txt"], "each of 'dev', 'valid' could be the choose split. Name one with"),
        (["news.train.txt", "web.train.txt"], "could be the train split"),
        (["train.txt", "test.txt", "heldout.txt"], "each of 'heldout', 'test' could be the test split"),
        (["train_test.txt", "valid.txt"], "'train_test' has the words of two splits, train and test"),
        (["train/test.txt", "train/a.txt"], "'train/test' has the words of two splits"),
        (["train.txt", "train.csv"], "'train.txt' and 'train.csv'"),
    ],
)
def test_what_could_mean_several_splits_is_refused_with_the_way_out(
    tmp_path: Path, names: list[str], said: str
) -> None:
    assert said in refusal(folder(tmp_path, *names))


def test_mnli_s_second_held_out_set_is_only_read_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path, "train.txt", "dev_matched.txt", "dev_mismatched.txt")
    assert read(root)["choose"] == ["dev_matched.txt"]
    assert read(root, evaluate="dev_mismatched")["choose"] == ["dev_mismatched.txt"]


@pytest.mark.parametrize("link", [False, True])
def test_one_file_under_the_names_of_two_splits_is_refused(tmp_path: Path, link: bool) -> None:
    root = folder(tmp_path, "train.txt", "valid.txt")
    if link:
        (root / "test.txt").symlink_to(root / "train.txt")
    else:
        (root / "test.txt").write_bytes((root / "train.txt").read_bytes())
    assert "'train'" in (message := refusal(root)) and "hold the same" in message


def test_documents_that_stand_in_the_training_split_are_counted(tmp_path: Path) -> None:
    for name, numbers in (("train", range(50)), ("valid", range(48, 60))):
        lines = [f'{{"text": "{"word " * 500}{number}"}}\n' for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    assert load_splits(DataSpec(name=str(tmp_path))).choose.repeated == 2


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    root = folder(tmp_path / "corpus", "train.txt", "valid.txt")
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "fifo.txt")
    for name in ("fifo.txt", "link.txt"):
        assert "is a FIFO. Give a regular file" in refusal(tmp_path / name)
        with pytest.raises(DataError, match="is a FIFO"):
            check_there(str(tmp_path / name))
    for device in ("/dev/zero", "/dev/null"):
        assert "is a device" in refusal(Path(device))
    (root / "test.txt").symlink_to(tmp_path / "link.txt")
    assert "is a FIFO" in refusal(root)
    (root / "test.txt").unlink()
    (root / "test.txt").symlink_to(tmp_path / "gone")
    assert "cannot be read (No such file" in refusal(root)
    (root / "test.txt").unlink()
    (root / "test.txt").symlink_to(root / "test.txt")
    assert "cannot be read (Too many levels" in refusal(root)


def test_links_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    root = folder(tmp_path, "train/a.txt", "valid/a.txt")
    (root / "train" / "again").symlink_to(root)
    assert read(root)["train"] == ["train/a.txt"]


def test_a_folder_with_far_too_many_files_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MOST_FILES", 3)
    assert "holds more than 3 files" in refusal(folder(tmp_path, *"abcd"))
