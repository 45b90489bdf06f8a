"""WordPiece trained here: BERT's rules, the same tokens in every process, and an export that others can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.finished import finished_sweep
from transformers import AutoTokenizer

from raysweep.errors import DataError
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.trial.data.examples import Dataset, load_dataset
from raysweep.trial.data.tokenizers import pretrained_tokenizer
from raysweep.trial.data.wordpiece import train_wordpiece
from raysweep.trial.exports.finished import restore
from raysweep.trial.exports.write import export

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LINES = ["The learner learned: learning is what learners do.\n", "Café, cafés and THE café!\n"] * 20


def load(name: Path | str = "python-docs", model: str = "pnn-nano", **data: Any) -> Dataset:
    return load_dataset(DataSpec(name=str(name), seq_len=16, tokenizer="wordpiece", **data), ModelSpec(name=model))


def test_words_are_lower_case_without_accents_and_cut_into_pieces() -> None:
    tokenizer = train_wordpiece(LINES, 400)
    encoding = tokenizer.encode("THE Café learns!", add_special_tokens=False)
    assert encoding.tokens[:2] == ["the", "cafe"] and encoding.tokens[-1] == "!"
    assert "".join(encoding.tokens[2:-1]).replace("##", "") == "learns"
    assert all(token.startswith("##") for token in encoding.tokens[3:-1]) and len(encoding.tokens) > 4
    assert tokenizer.decode(encoding.ids) == "the cafe learns!"


def test_special_tokens_come_first_and_frame_one_text_or_two() -> None:
    tokenizer = train_wordpiece(LINES, 400)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    pair = tokenizer.encode("the", "café")
    assert pair.tokens == ["[CLS]", "the", "[SEP]", "cafe", "[SEP]"] and pair.type_ids == [0, 0, 0, 1, 1]
    assert tokenizer.encode("[MASK] the", add_special_tokens=False).ids[0] == 4


def test_a_character_that_the_training_text_lacks_makes_its_word_unknown() -> None:
    tokenizer = train_wordpiece(LINES, 400)
    assert tokenizer.encode("the ж learner", add_special_tokens=False).tokens[1] == "[UNK]"


def test_a_vocabulary_is_as_large_as_asked_at_most_and_characters_fill_no_more_than_a_quarter_of_it() -> None:
    rare = "".join(chr(0x4E00 + number) for number in range(500))
    tokenizer = train_wordpiece([*LINES, rare], 200)
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) <= 200 and sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len([token for token in vocabulary if len(token.removeprefix("##")) == 1]) == 2 * (200 // 8)


def test_every_process_trains_the_same_tokenizer(tmp_path: Path) -> None:
    """The library's own trainer numbers what it finds in the order of a hash map, another one in each process."""
    program = (
        "import hashlib, sys\n"
        "from pydoc_data.topics import topics\n"
        "from raysweep.trial.data.wordpiece import train_wordpiece\n"
        "lines = [line for name in sorted(topics) for line in topics[name].splitlines(keepends=True)]\n"
        "print(hashlib.sha256(train_wordpiece(lines, 1024).to_str().encode()).hexdigest())\n"
    )
    found = {
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
        for _ in range(3)
    }
    assert len(found) == 1


def test_a_corpus_is_read_with_it_at_the_size_of_the_model() -> None:
    found = load()
    assert found.facts.vocab_size == 1024  # pnn-nano's
    assert (found.facts.pad_token, found.facts.mask_token, found.facts.special_tokens) == (0, 4, (0, 1, 2, 3, 4))
    assert found.train.shape[1] == 16 and found.train.max() == 1023
    default = load_dataset(DataSpec(seq_len=16), ModelSpec(name="pnn-nano"))
    assert default.fingerprint != found.fingerprint


def test_windows_follow_each_other_without_padding_and_nothing_is_unknown() -> None:
    found = load()
    for windows in (found.train, found.evaluation):
        assert np.isin(windows, found.facts.special_tokens).mean() == 0


def test_a_model_with_a_tokenizer_of_its_own_is_not_given_another(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="'wordpiece' is trained for a from-scratch size; model .* has its own"):
        load(model=str(tmp_path))


def test_an_export_brings_it_along(tmp_path: Path) -> None:
    folder = finished_sweep(tmp_path, "words", model__name="pnn-nano", data__tokenizer="wordpiece")
    facts = restore(folder, 1).data.facts
    export(folder, 1, tmp_path / "out", "dense")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The statement is executed."
    trained = restore(folder, 1).data.tokenizer
    assert trained is not None and loaded.encode(text) == trained().encode(text).ids
    assert pretrained_tokenizer(str(tmp_path / "out"))[1] == facts
