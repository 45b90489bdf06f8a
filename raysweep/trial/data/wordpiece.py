"""WordPiece, the tokenizer that BERT and PNN were published with, trained on a text: lower-case, pieces of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

UNKNOWN, CLASS, SEPARATOR = "[UNK]", "[CLS]", "[SEP]"


ROLES = {"[PAD]": "pad_token", UNKNOWN: "unk_token", CLASS: "cls_token", SEPARATOR: "sep_token", "[MASK]": "mask_token"}
"""Special tokens in the order of their ids, with the names that transformers has for them."""


PREFIX = "##"


SMALLEST = 64
"""Tokens of a vocabulary."""


CHARACTERS, CHARACTER_SHARE = 1000, 8
"""Most characters that a vocabulary begins with, as BERT's, and at most one in so many of its tokens. A word with
another character is unknown."""


def train_wordpiece(lines: Sequence[str], vocab_size: int) -> Any:
    """Train a tokenizer with BERT's normaliser and pre-tokeniser (Devlin et al. 2019); equal texts give equal ones.

    Args:
        vocab_size: largest number of tokens; a short text fills less.
    """
    from tokenizers import trainers

    characters = _characters(lines, vocab_size)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        # The library numbers the characters inside words in the order of a hash map, another one in every process, and
        # numbers decide between equally frequent pairs. Named beforehand they have the same number everywhere.
        special_tokens=[*ROLES, *(PREFIX + character for character in characters)],
        show_progress=False,
    )
    learning = _tokenizer({UNKNOWN: 0})
    learning.train_from_iterator(lines, trainer)
    return _with_special_tokens(_tokenizer(learning.get_vocab()))


def _tokenizer(vocabulary: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=PREFIX))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _with_special_tokens(tokenizer: Any) -> Any:
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
    normalizer = _tokenizer({UNKNOWN: 0}).normalizer
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(normalizer.normalize_str(line))
    visible = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    most = min(CHARACTERS, vocab_size // CHARACTER_SHARE)
    return sorted(character for _, character in visible[:most])
