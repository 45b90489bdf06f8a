"""Load or train the tokenizer of a model."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from filelock import FileLock

from raysweep.contracts import Facts
from raysweep.errors import DataError
from raysweep.job import registry
from raysweep.job.names import WORDPIECE
from raysweep.job.plan import content_key
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.trial.data import bpe, wordpiece
from raysweep.trial.data.cache import cache_folder, lock_path


def tokenizer_source(model: ModelSpec, data: DataSpec) -> tuple[str | None, int | None]:
    """Return (name of a pretrained tokenizer, None), or (`wordpiece` or None, size of a vocabulary to train).

    Raises:
        DataError: a tokenizer is to be trained for a model that has its own.
    """
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
    """Return a tokenizer, its identity and the ids that a task must know: a pretrained one, or one trained here.

    Args:
        train: text to train it on.
        name: hub name or folder; `wordpiece`; or None for a byte-level BPE.
        vocab_size: largest size of one trained here.
        special_tokens: give that BPE the tokens of an encoder.

    Raises:
        DataError: it cannot be loaded, or its vocabulary would be smaller than the bytes and special tokens.
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
    if size < bpe.BYTES + len(roles):
        extra = f" and {len(roles)} special ones" if roles else ""
        raise DataError(
            f"a byte-level BPE has at least {bpe.BYTES} tokens, one for each byte{extra}; not {vocab_size}."
        )
    special = {"special": list(roles)} if roles else {}
    tokenizer, identity = _trained({"bpe": 1} | recipe | special, lambda: bpe.train_bpe(lines, size, roles))
    return tokenizer, identity, _facts_of(tokenizer, roles)


def _trained(recipe: dict[str, Any], train: Callable[[], Any]) -> tuple[Any, str]:
    """Return a tokenizer from the cache, or trained now; and its identity, which follows from the recipe."""
    identity = content_key(recipe)
    path = cache_folder() / "tokenizers" / f"{identity}.json"
    from tokenizers import Tokenizer

    with FileLock(lock_path(path)):
        if not path.exists():
            trained = train()
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
                part.write(trained.to_str().encode())
            os.replace(part.name, path)
    return Tokenizer.from_file(str(path)), identity


def _facts_of(tokenizer: Any, roles: Mapping[str, str]) -> Facts:
    ids = {role: tokenizer.token_to_id(token) for token, role in roles.items()}
    return Facts(
        vocab_size=tokenizer.get_vocab_size(),
        mask_token=ids.get("mask_token"),
        pad_token=ids.get("pad_token"),
        special_tokens=tuple(ids.values()),
    )


def special_roles(tokenizer: Any, facts: Facts) -> dict[str, str]:
    """Return the special tokens of a tokenizer trained here, by the names that transformers has for them."""
    roles = bpe.ROLES | wordpiece.ROLES
    tokens = map(tokenizer.id_to_token, facts.special_tokens)
    return {roles[token]: token for token in tokens}


def pretrained_tokenizer(name: str) -> tuple[Any, Facts]:
    """Return a pretrained tokenizer (`encode(text).ids`, `decode(ids)`) that neither cuts nor pads, and its ids.

    Raises:
        DataError: none can be loaded, or it has no fast form.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # a damaged file raises what its parser raises
        reason = str(error).strip().partition("\n")[0]
        raise _no_tokenizer(name, f"{type(error).__name__}: {reason}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise _no_tokenizer(name, "it has no fast form")
    if backend.get_vocab_size() <= len(loaded.all_special_tokens):
        raise _no_tokenizer(name, "its vocabulary is missing")  # transformers makes an empty one of a folder without
    backend.no_truncation()  # both may stand in its file, and would cut or pad every text
    backend.no_padding()
    return backend, Facts(
        vocab_size=max(backend.get_vocab().values()) + 1,  # a vocabulary may have holes
        mask_token=loaded.mask_token_id,
        pad_token=loaded.pad_token_id,
        special_tokens=tuple(sorted(loaded.all_special_ids)),
    )


def _no_tokenizer(name: str, reason: str) -> DataError:
    return DataError(
        f"no tokenizer can be loaded from {name!r} ({reason}). Name one with data.tokenizer in a job, with --tokenizer "
        "otherwise."
    )
