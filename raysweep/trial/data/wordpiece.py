"""Train a WordPiece tokenizer on a text: lower case, pieces of words. BERT and PNN were published with WordPiece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

UNKNOWN, CLASS, SEPARATOR = "[UNK]", "[CLS]", "[SEP]"


ROLES = {"[PAD]": "pad_token", UNKNOWN: "unk_token", CLASS: "cls_token", SEPARATOR: "sep_token", "[MASK]": "mask_token"}
"""Special tokens in the order of their ids, with transformers' names for them."""


PREFIX = "##"
"""Begins every piece that is not the first of its word."""


SMALLEST = 64
"""Fewest tokens of a vocabulary."""


CHARACTERS, CHARACTER_SHARE = 1000, 8
"""A vocabulary begins with the most frequent characters: at most 1,000, as BERT's, and at most an eighth of its tokens.
A word with any other character is unknown."""


def train_wordpiece(lines: Sequence[str], vocab_size: int) -> Any:
    """Train a tokenizer with BERT's normaliser and pre-tokeniser (Devlin et al. 2019).

    Equal texts give equal tokenizers, in any process on any machine.

    Args:
        vocab_size: largest number of tokens; a short text gives fewer.
    """
    from tokenizers import trainers

    characters = _characters(lines, vocab_size)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        # The library numbers the characters inside words in the order of a hash map, which differs between processes,
        # and these numbers decide between equally frequent pairs. Special tokens are numbered first, in given order, so
        # the characters are passed as special tokens.
        special_tokens=[*ROLES, *(PREFIX + character for character in characters)],
        show_progress=False,
    )
    learning = _tokenizer({UNKNOWN: 0})
    learning.train_from_iterator(lines, trainer)
    # A new tokenizer takes over the vocabulary alone: the trained one treats those characters as special tokens.
    return _with_special_tokens(_tokenizer(learning.get_vocab()))


def _tokenizer(vocabulary: dict[str, int]) -> Any:
    """Return a WordPiece tokenizer with a vocabulary, without special tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=PREFIX))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _with_special_tokens(tokenizer: Any) -> Any:
    """Return the tokenizer with BERT's special tokens, which it adds around a sentence or a pair of sentences."""
    from tokenizers import processors

    tokenizer.add_special_tokens(list(ROLES))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A {SEPARATOR}",
        pair=f"{CLASS} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLASS, SEPARATOR)],
    )
    return tokenizer


def _characters(lines: Iterable[str], vocab_size: int) -> list[str]:
    """Return the most frequent characters as the normaliser leaves them, in the order of their code points."""
    # Sorted by count and then by code point, so that equally frequent characters are cut the same way everywhere.
    normalizer = _tokenizer({UNKNOWN: 0}).normalizer
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(normalizer.normalize_str(line))
    visible = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    most = min(CHARACTERS, vocab_size // CHARACTER_SHARE)
    return sorted(character for _, character in visible[:most])
