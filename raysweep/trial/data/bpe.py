"""Train a byte-level BPE tokenizer on a text. It encodes every text: no token is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

BYTES = 256
"""Tokens of the smallest vocabulary: one for each byte."""
CLASS, SEPARATOR = "<|class|>", "<|separator|>"
ROLES = {CLASS: "cls_token", "<|pad|>": "pad_token", "<|mask|>": "mask_token", SEPARATOR: "sep_token"}
"""Special tokens of an encoder, in the order of their ids, with transformers' names for them."""
# The padding comes second, with id 1: RoBERTa counts its positions from the padding's id.


def train_bpe(lines: Iterable[str], vocab_size: int, special: Iterable[str]) -> Any:
    """Train a tokenizer on lines of text.

    Args:
        vocab_size: largest number of tokens; a short text gives fewer.
        special: special tokens, all of `ROLES` or none.
    """
    # Imported here: code that only needs the names of special tokens then does not load the library.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The whole alphabet of bytes is there from the start: bytes that do not occur in the text have a token, too.
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
