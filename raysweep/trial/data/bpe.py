"""Byte-level BPE trained on a text: every text can be encoded, none becomes unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

BYTES = 256
CLASS, SEPARATOR = "<|class|>", "<|separator|>"
ROLES = {CLASS: "cls_token", "<|pad|>": "pad_token", "<|mask|>": "mask_token", SEPARATOR: "sep_token"}
"""Special tokens of an encoder, in the order of their ids, with the names that transformers has for them. RoBERTa
counts positions from its padding's id, which is 1."""


def train_bpe(lines: Iterable[str], vocab_size: int, special: Iterable[str]) -> Any:
    """Train a tokenizer.

    Args:
        vocab_size: largest number of tokens; a short text fills less.
        special: special tokens, all of `ROLES` or none.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=list(special),
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLASS} $A",
            pair=f"{CLASS} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLASS, SEPARATOR)],
        )
    return tokenizer
