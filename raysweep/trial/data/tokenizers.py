"""Load the tokenizer of a pretrained model, or train one on a text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from raysweep.contracts import Facts
from raysweep.errors import DataError
from raysweep.job import registry
from raysweep.job.names import WORDPIECE
from raysweep.job.plan import content_key
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.trial.data import bpe, wordpiece
from raysweep.trial.data.cache import cache_folder, keep_file


def tokenizer_source(model: ModelSpec, data: DataSpec) -> tuple[str | None, int | None]:
    """Return (name of a pretrained tokenizer, None), or (`wordpiece` or None, size of the vocabulary to train).

    Raises:
        DataError: the job asks to train a tokenizer for a pretrained model, which has one.
    """
    # A pretrained model knows the ids of its own tokenizer only, so `data.tokenizer: wordpiece` is refused for it.
    if data.tokenizer not in (None, WORDPIECE):
        return data.tokenizer, None
    if model.name in scratch_sizes():
        family = registry.load("models", scratch_sizes()[model.name])
        return data.tokenizer, family.sizes[model.name]["vocab_size"]
    if data.tokenizer is None:
        return model.name, None
    raise DataError(
        f"data.tokenizer = {data.tokenizer!r} is trained for a from-scratch size; model {model.name!r} has its own. "
        "Remove data.tokenizer, or choose a size (`raysweep list models`)."
    )


def text_tokenizer(
    train: str, name: str | None, vocab_size: int | None, *, special_tokens: bool
) -> tuple[Any, str, Facts]:
    """Return a tokenizer, its identity, and the ids of its special tokens.

    The identity is a hash of the tokenizer itself if it is pretrained, and of the recipe if it is trained here.

    Args:
        train: text to train it on.
        name: hub name or folder of a pretrained one; `wordpiece`; or None for a byte-level BPE.
        vocab_size: largest vocabulary of one trained here.
        special_tokens: give a BPE the special tokens of an encoder.

    Raises:
        DataError: it cannot be loaded, or `vocab_size` is too small for the bytes and special tokens.
    """
    if name is not None and name != WORDPIECE:
        tokenizer, facts = pretrained_tokenizer(name)
        return tokenizer, hashlib.sha256(tokenizer.to_str().encode()).hexdigest(), facts
    size = vocab_size or 0
    recipe: dict[str, Any] = {"train": hashlib.sha256(train.encode()).hexdigest(), "vocab_size": size}
    lines = train.splitlines(keepends=True)
    if name == WORDPIECE:
        if size < wordpiece.SMALLEST:
            raise DataError(f"a WordPiece vocabulary has at least {wordpiece.SMALLEST} tokens, not {vocab_size}.")
        tokenizer, identity = _trained({"wordpiece": 1} | recipe, lambda: wordpiece.train_wordpiece(lines, size))
        return tokenizer, identity, _facts_of(tokenizer, wordpiece.ROLES)
    roles = bpe.ROLES if special_tokens else {}
    # The trainer would go below without an error, and the model would then have another size than its name says.
    if size < bpe.BYTES + len(roles):
        extra = f" and {len(roles)} special ones" if roles else ""
        raise DataError(
            f"a byte-level BPE has at least {bpe.BYTES} tokens, one for each byte{extra}; not {vocab_size}."
        )
    # Left out of the recipe where there are none, so that tokenizers without special tokens keep their identity.
    special = {"special": list(roles)} if roles else {}
    tokenizer, identity = _trained({"bpe": 1} | recipe | special, lambda: bpe.train_bpe(lines, size, roles))
    return tokenizer, identity, _facts_of(tokenizer, roles)


def _trained(recipe: dict[str, Any], train: Callable[[], Any]) -> tuple[Any, str]:
    """Return a tokenizer, from the cache or trained now, and its identity, a hash of the recipe.

    Args:
        recipe: everything that determines the result of `train`.
    """
    identity = content_key(recipe)
    path = cache_folder() / "tokenizers" / f"{identity}.json"
    from tokenizers import Tokenizer

    keep_file(path, lambda: train().to_str().encode())
    # Read back even where it was trained just now, so that all processes use the very same tokenizer.
    return Tokenizer.from_file(str(path)), identity


def _facts_of(tokenizer: Any, roles: Mapping[str, str]) -> Facts:
    """Return the size and the special ids of a tokenizer trained here."""
    ids = {role: tokenizer.token_to_id(token) for token, role in roles.items()}
    return Facts(
        vocab_size=tokenizer.get_vocab_size(),
        mask_token=ids.get("mask_token"),
        pad_token=ids.get("pad_token"),
        special_tokens=tuple(ids.values()),
    )


def special_roles(tokenizer: Any, facts: Facts) -> dict[str, str]:
    """Return the special tokens of a tokenizer trained here, by transformers' names for them."""
    roles = bpe.ROLES | wordpiece.ROLES
    tokens = map(tokenizer.id_to_token, facts.special_tokens)
    return {roles[token]: token for token in tokens}


def pretrained_tokenizer(name: str) -> tuple[Any, Facts]:
    """Return a pretrained tokenizer (`encode(text).ids`, `decode(ids)`) that neither truncates nor pads, and its ids.

    Raises:
        DataError: none can be loaded, or it has no fast form, or no vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:
        # A damaged file raises whatever error its parser has, so no narrower class would do.
        reason = str(error).strip().partition("\n")[0]
        raise _no_tokenizer(name, f"{type(error).__name__}: {reason}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise _no_tokenizer(name, "it has no fast form")
    if backend.get_vocab_size() <= len(loaded.all_special_tokens):
        # For a folder without a vocabulary, transformers makes an empty tokenizer and raises nothing.
        raise _no_tokenizer(name, "its vocabulary is missing")
    # A tokenizer's file may switch both on, and they would truncate or pad every text here.
    backend.no_truncation()
    backend.no_padding()
    return backend, Facts(
        # The largest id counts, not the number of tokens: a vocabulary may have holes.
        vocab_size=max(backend.get_vocab().values()) + 1,
        mask_token=loaded.mask_token_id,
        pad_token=loaded.pad_token_id,
        special_tokens=tuple(sorted(loaded.all_special_ids)),
    )


def _no_tokenizer(name: str, reason: str) -> DataError:
    return DataError(
        f"no tokenizer can be loaded from {name!r} ({reason}). Name one with data.tokenizer in a job, with --tokenizer "
        "otherwise."
    )
