"""From text to batches: exact round trips, one cache entry however many build it, and no window lost or seen twice."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raysweep.errors import DataError
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.trial.data import bpe, tokenizers
from raysweep.trial.data import cache as cache_module
from raysweep.trial.data import tokens as data
from raysweep.trial.data.cache import cache_folder
from raysweep.trial.data.corpora import load_splits
from raysweep.trial.data.examples import check_enough, load_dataset
from raysweep.trial.data.splits import Corpus, Split
from raysweep.trial.data.tokens import BatchOrder, TokenStore, prepare, shard, windows_of

STRANGE = "naïve café — 你好, мир! 🤖👩\u200d👧 \u200b e\u0301 \ufeff tabs\t\x00\x0b\u2028 <unk> <|endoftext|>"
STRANGE += "  two  spaces\r\n\n\n"


def prose(num_lines: int, start: int = 0) -> str:
    return "".join(
        f"Line {number} of a text about nothing but the number {number}.\n" for number in range(start, num_lines)
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty token cache."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.txt").write_text(prose(600), encoding="utf-8")
    (folder / "valid.txt").write_text(prose(700, 600), encoding="utf-8")
    return folder


def tokens_of(folder: Path, vocab_size: int = 300, tokenizer: str | None = None, **content: Any) -> TokenStore:
    settings: dict[str, Any] = {"name": str(folder), "seq_len": 16}
    spec = DataSpec(**settings | content)
    return prepare(spec, tokenizer=tokenizer, vocab_size=None if tokenizer else vocab_size)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def words_tokenizer(words: list[str]) -> Tokenizer:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


# Tokens


def test_every_text_survives_the_round_trip(corpus: Path) -> None:
    tokenizer = tokens_of(corpus).tokenizer()  # trained on plain English
    for text in (STRANGE, prose(20), "", "\n", " leading and trailing "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_stored_tokens_are_the_whole_text(corpus: Path) -> None:
    (corpus / "train.txt").write_text(prose(600) + STRANGE, encoding="utf-8", newline="")
    store = tokens_of(corpus)
    train, evaluation = (split.content for split in load_splits(DataSpec(name=str(corpus))).named().values())
    assert store.tokenizer().decode(store.train.tolist()) == train
    assert store.tokenizer().decode(store.evaluation.tolist()) == evaluation


def test_two_texts_share_the_tokenizer_of_one(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("zebra quartz vortex! " * 2000, encoding="utf-8")
    first, learned_from = tokens_of(corpus), DataSpec(name=str(corpus), seq_len=16)
    spec = DataSpec(name=str(other), seq_len=16)
    shared = prepare(spec, tokenizer=None, vocab_size=300, learned_from=learned_from)
    alone = prepare(spec, tokenizer=None, vocab_size=300)
    assert shared.tokenizer().to_str() == first.tokenizer().to_str() != alone.tokenizer().to_str()
    for store in (shared, alone):
        assert store.tokenizer().decode(store.evaluation.tolist()) == load_splits(spec).choose.content


def test_a_text_is_encoded_piece_by_piece_without_loss(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokens_of(corpus)
    monkeypatch.setattr(data, "PIECE_CHARACTERS", 700)
    monkeypatch.setattr(data, "PIECES_AT_ONCE", 3)
    pieces = tokens_of(corpus)
    assert pieces.folder != whole.folder
    assert pieces.tokenizer().decode(pieces.train.tolist()) == prose(600)
    assert pieces.train.tolist() == whole.train.tolist()  # lines that begin with a word are cut between tokens


def test_stored_tokens_are_mapped_and_cannot_be_written(corpus: Path) -> None:
    store = tokens_of(corpus)
    for tokens in (store.train, store.evaluation, windows_of(store.train, 16)):
        assert isinstance(tokens, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 0


@pytest.mark.parametrize(("num_words", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(
    tmp_path: Path, corpus: Path, num_words: int, dtype: Any
) -> None:
    last = f"w{num_words - 1}"
    for split, times in (("train", 20), ("valid", 21)):
        (corpus / f"{split}.txt").write_text(f"w0 {last} " * times)
    tokenizer = save_tokenizer(words_tokenizer([f"w{index}" for index in range(num_words)]), tmp_path / "tokenizer")
    store = tokens_of(corpus, tokenizer=tokenizer)
    assert store.train.dtype == dtype and store.vocab_size == num_words + 1
    assert store.train[:2].tolist() == [1, num_words]


def test_a_pretrained_tokenizer_that_truncates_and_pads_does_neither_here(tmp_path: Path, corpus: Path) -> None:
    tokenizer = words_tokenizer(sorted(set(prose(700).split())))
    tokenizer.enable_truncation(8)  # as sentence encoders are saved
    tokenizer.enable_padding(length=64)
    store = tokens_of(corpus, tokenizer=save_tokenizer(tokenizer, tmp_path / "tokenizer"))
    assert len(store.train) == len(prose(600).split())
    assert 0 not in store.train


def test_tokens_of_a_stream_are_cut_to_the_number_asked_for(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, choose = (Split(content=text, origin="here") for text in (prose(600), prose(700, 600)))
    monkeypatch.setattr(data, "load_splits", lambda spec: Corpus(train=train, choose=choose))
    whole = tokens_of(corpus)
    cut = tokens_of(corpus, max_tokens=500)
    assert cut.train.tolist() == whole.train[:500].tolist()
    assert len(cut.evaluation) == len(whole.evaluation)


def test_the_embedded_corpus_becomes_tokens() -> None:
    spec = DataSpec()
    store = prepare(spec, tokenizer=None, vocab_size=1024)
    assert store.vocab_size == 1024
    assert len(store.train) > 100_000 and len(store.evaluation) > 10_000
    assert store.tokenizer().decode(store.evaluation.tolist()) == load_splits(spec).choose.content


@pytest.mark.slow
def test_wikitext_2_becomes_tokens(shared_data: Path) -> None:
    store = tokens_of(shared_data / "wikitext-2", vocab_size=1024, train="test", evaluate="valid")
    text = (shared_data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
    assert store.tokenizer().decode(store.evaluation.tolist()) == text


# What is refused


@pytest.mark.parametrize("vocab_size", [255, 1, 0, None])
def test_a_vocabulary_smaller_than_the_bytes_is_refused(corpus: Path, vocab_size: Any) -> None:
    """The trainer would give 256 tokens without a word, and the model would have another size than its name says."""
    with pytest.raises(DataError, match="at least 256 tokens, one for each byte"):
        tokens_of(corpus, vocab_size=vocab_size)


def test_the_smallest_vocabulary_is_the_bytes(corpus: Path) -> None:
    store = tokens_of(corpus, vocab_size=256)
    assert store.vocab_size == 256
    assert len(store.train) == len(prose(600).encode())


def test_a_text_shorter_than_one_window_is_refused(corpus: Path) -> None:
    (corpus / "valid.txt").write_text("short")
    with pytest.raises(DataError, match="its choose split has . tokens, fewer than one window of data.seq_len = 16"):
        tokens_of(corpus)


def test_a_text_shorter_than_one_batch_is_refused(corpus: Path) -> None:
    spec = DataSpec(name=str(corpus), seq_len=16)
    store = load_dataset(spec, ModelSpec(name="gpt2-nano"))
    windows = len(store.train)
    check_enough(store, spec, batch_size=windows)
    with pytest.raises(DataError, match=f"{windows} training examples .* but training.batch_size = {windows + 1}"):
        check_enough(store, spec, batch_size=windows + 1)
    probing = spec.model_copy(update={"probe_windows": windows + 1})
    with pytest.raises(DataError, match=f"data.probe_windows = {windows + 1}"):
        check_enough(store, probing, batch_size=1)


@pytest.mark.parametrize("content", [None, "{nonsense", '{"a": 1}'])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_folder_without_a_whole_tokenizer_is_refused(
    tmp_path: Path, corpus: Path, family: str, content: str | None
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="no tokenizer can be loaded from .*Name one with data.tokenizer"):
        tokens_of(corpus, tokenizer=str(folder))


def test_a_vocabulary_with_holes_is_as_large_as_its_largest_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 7, "[UNK]": 3}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    assert tokenizers.pretrained_tokenizer(str(tmp_path))[1].vocab_size == 8


def test_an_unknown_tokenizer_without_a_hub_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer can be loaded from 'nobody/nothing'"):
        tokens_of(corpus, tokenizer="nobody/nothing")


# The cache


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each expensive step was taken."""
    counts: Counter[str] = Counter()
    for module, name in ((bpe, "train_bpe"), (cache_module, "_build_entry")):
        step = getattr(module, name)

        def counted(*args: Any, name: str = name, step: Any = step) -> Any:
            counts[name] += 1
            return step(*args)

        monkeypatch.setattr(module, name, counted)
    return counts


def test_the_second_time_nothing_is_tokenized(corpus: Path, work: Counter[str]) -> None:
    first, second = tokens_of(corpus), tokens_of(corpus)
    assert work == {"train_bpe": 1, "_build_entry": 1}
    assert first.folder == second.folder and first.fingerprint == second.fingerprint
    assert first.train.tolist() == second.train.tolist()


def test_a_cache_entry_belongs_to_one_text_and_one_tokenizer(corpus: Path, work: Counter[str], cache: Path) -> None:
    stores = [tokens_of(corpus), tokens_of(corpus, vocab_size=320)]
    (corpus / "valid.txt").write_text(prose(800, 700))
    stores.append(tokens_of(corpus))
    assert work == {"train_bpe": 2, "_build_entry": 3}  # the training text is the same
    (corpus / "train.txt").write_text(prose(900, 300))
    stores.append(tokens_of(corpus))
    stores.append(tokens_of(corpus, tokenizer=save_tokenizer(words_tokenizer(["a"]), cache / "words")))
    assert len({store.folder for store in stores}) == len({store.fingerprint for store in stores}) == 5
    assert len({store.text_sha256 for store in stores}) == 3


def test_the_same_text_elsewhere_is_the_same_entry(corpus: Path, tmp_path: Path, work: Counter[str]) -> None:
    first = tokens_of(corpus)
    corpus.rename(tmp_path / "moved")
    assert tokens_of(tmp_path / "moved").fingerprint == first.fingerprint
    assert work["_build_entry"] == 1


def test_the_cache_stands_in_the_home_folder_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSWEEP_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/raysweep")


PREPARE = """
import json, os, sys
from raysweep.trial.data import cache
from raysweep.trial.data import tokens as data
from raysweep.job.spec import DataSpec, ModelSpec

build = cache._build_entry
def logged(*args):
    print("built", file=sys.stderr)
    build(*args)
cache._build_entry = logged
{before}
store = data.prepare(DataSpec(name=sys.argv[1], seq_len=16), tokenizer=None, vocab_size=300)
print(json.dumps([store.fingerprint, store.tokenizer().to_str(), store.train.tolist()]))
"""


def start(corpus: Path, before: str = "", threads: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE.format(before=before), str(corpus)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAYON_NUM_THREADS": str(threads)},
    )  # fmt: skip


def test_three_processes_at_once_build_one_entry(corpus: Path, cache: Path) -> None:
    processes = [start(corpus) for _ in range(3)]
    outcomes = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outcomes
    assert sum(errors.count("built") for _, errors in outcomes) == 1
    assert len({output for output, _ in outcomes}) == 1
    entries = [path for path in (cache / "tokens").iterdir() if path.is_dir()]
    assert len(entries) == 1
    assert json.loads((entries[0] / "about.json").read_text())["tokens"]["train"] == len(json.loads(outcomes[0][0])[2])


@pytest.mark.slow
def test_two_machines_train_the_same_tokenizer(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for machine, threads in (("a", 1), ("b", 4)):
        monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / machine))
        outputs.append(start(corpus, threads=threads).communicate(timeout=60)[0])
    assert outputs[0] == outputs[1] and json.loads(outputs[0])[2]


@pytest.mark.parametrize("victim", ["np.save", "os.replace"])
def test_a_killed_builder_leaves_nothing_that_counts(corpus: Path, cache: Path, victim: str) -> None:
    """`np.save`: after the first array is written; `os.replace`: before the trained tokenizer is in place."""
    module, name = victim.split(".")
    before = f"""
import signal, numpy as np
real = {victim}
def killed(*args):
    if {module!r} == "np":
        real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{name} = killed
"""
    process = start(corpus, before)
    process.communicate(timeout=60)
    assert process.returncode == -9
    kind = "tokens" if module == "np" else "tokenizers"
    assert [path for path in (cache / kind).iterdir() if ".part" in path.name]  # it did die half-way
    assert tokens_of(corpus).tokenizer().decode(tokens_of(corpus).train.tolist()) == prose(600)


# Windows, batches and shards


def test_windows_leave_out_a_tail() -> None:
    assert windows_of(np.arange(10), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows_of(np.arange(3), 4).shape == (0, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("num_windows", "batch_size"), [(50, 12), (13, 12), (12, 12), (7, 12), (29, 5)])
def test_every_number_of_ranks_sees_the_same_batches(num_windows: int, batch_size: int, world_size: int) -> None:
    order = BatchOrder(num_windows=num_windows, batch_size=batch_size, seed=3)
    for step in range(10):
        shares = [order.indices(step, rank, world_size).tolist() for rank in range(world_size)]
        assert sorted(sum(shares, [])) == sorted(order.indices(step).tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("num_windows", "batch_size"), [(24, 6), (7, 3), (10, 4), (5, 5), (11, 16)])
def test_an_epoch_holds_each_window_once_and_none_is_lost_between_epochs(num_windows: int, batch_size: int) -> None:
    order = BatchOrder(num_windows=num_windows, batch_size=batch_size, seed=1)
    seen = np.concatenate([order.indices(step) for step in range(num_windows)])
    epochs = seen.reshape(batch_size, num_windows)  # as many windows as `batch_size` epochs
    assert all(sorted(epoch) == list(range(num_windows)) for epoch in epochs.tolist())


def test_epochs_are_ordered_differently() -> None:
    order = BatchOrder(num_windows=40, batch_size=40, seed=1)
    assert order.indices(0).tolist() != order.indices(1).tolist()


def test_the_order_of_a_step_does_not_depend_on_the_steps_before() -> None:
    order = BatchOrder(num_windows=17, batch_size=4, seed=9)
    forward = [order.indices(step).tolist() for step in range(20)]
    resumed = BatchOrder(num_windows=17, batch_size=4, seed=9)
    assert [resumed.indices(step).tolist() for step in reversed(range(20))] == forward[::-1]


def test_a_seed_decides_the_order() -> None:
    orders = [BatchOrder(num_windows=60, batch_size=30, seed=seed).indices(0).tolist() for seed in (0, 1, 2**55, 0)]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_shards_are_disjoint_and_complete(count: int, world_size: int) -> None:
    shards = [shard(count, rank, world_size).tolist() for rank in range(world_size)]
    assert sorted(sum(shards, [])) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


# A cache that cannot be used


def refused(corpus: Path) -> str:
    with pytest.raises(DataError) as caught:
        tokens_of(corpus)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cache_that_is_a_file_is_one_line_with_the_variable(corpus: Path, cache: Path) -> None:
    cache.write_text("a file")
    assert f"the cache {str(cache)!r} cannot be used (" in (message := refused(corpus))
    assert "set RAYSWEEP_CACHE to a folder that can be written" in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, None])
def test_a_cache_that_cannot_be_written_leaves_nothing_behind(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def full(*args: Any) -> None:
        raise OSError("1000 requested and 0 written") if number is None else OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "save", full)
    said = "1000 requested and 0 written" if number is None else os.strerror(number)
    assert f"cannot be used ({said}). Free room there, or set RAYSWEEP_CACHE" in refused(corpus)
    assert [path.name for path in (cache / "tokens").iterdir() if ".part" in path.name] == []


def test_a_cache_that_holds_what_is_needed_may_be_read_only(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokens_of(corpus)

    def no_lock(path: Path) -> Path:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(cache_module, "lock_path", no_lock)
    assert tokens_of(corpus).fingerprint == first.fingerprint


def test_without_a_home_folder_the_variable_is_named(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RAYSWEEP_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    assert refused(corpus) == "there is no home folder for the cache. Set RAYSWEEP_CACHE to a folder."


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_cache_has_the_rights_that_the_umask_leaves(corpus: Path, cache: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = tokens_of(corpus)
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode & 0o777 for path in (store.folder, *store.folder.iterdir())}
    found |= {path: path.stat().st_mode & 0o777 for path in (cache / "tokenizers").glob("*.json")}
    assert len(found) == 6
    assert all(mode == (0o777 if path.is_dir() else 0o666) & ~umask for path, mode in found.items())
