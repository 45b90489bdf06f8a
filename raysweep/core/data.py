"""From text to token windows: tokenized once a node, memory-mapped, sharded over ranks without overlap or loss."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from raysweep.contracts import Examples, Facts
from raysweep.core import bpe, wordpiece
from raysweep.core.corpora import blocks_of, load_splits
from raysweep.errors import DataError
from raysweep.plan import content_key
from raysweep.spec import DataSpec

Tokens = npt.NDArray[Any]
SPLITS = ("train", "evaluation")
PIECE_CHARACTERS, PIECES_AT_ONCE = 100_000, 16


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """The tokens of one corpus under one tokenizer, on disk."""

    folder: Path
    train: Tokens
    evaluation: Tokens
    vocab_size: int
    fingerprint: str
    """Hash of both texts and the tokenizer."""
    text_sha256: str
    facts: Facts

    def tokenizer(self) -> Any:
        """Return the tokenizer (`encode(text).ids`, `decode(ids)`)."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))


def prepare(
    data: DataSpec, *, tokenizer: str | None, vocab_size: int | None, special_tokens: bool = False,
    learned_from: DataSpec | None = None,
) -> TokenStore:  # fmt: skip
    """Return a corpus as tokens, from the cache or tokenized now; safe to call from every process of a node at once.

    Args:
        tokenizer, vocab_size, special_tokens: as `text_tokenizer` takes them; trained on the training split.
        learned_from: the corpus on whose training split instead, so that two corpora share one tokenizer.

    Raises:
        DataError: no such corpus or tokenizer, too small a vocabulary, or text too short for one window in each split.
    """
    train, evaluation = load_splits(data)
    texts = {"train": train, "evaluation": evaluation}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    taught = train if learned_from is None else load_splits(learned_from)[0]
    built, identity, facts = text_tokenizer(taught, tokenizer, vocab_size, special_tokens=special_tokens)
    fingerprint = content_key(
        {"text": digests, "tokenizer": identity, "max_tokens": data.max_tokens, "pieces": PIECE_CHARACTERS}
    )
    folder = cache_folder() / "tokens" / fingerprint
    limits = {"train": data.max_tokens, "evaluation": None}
    keep_arrays(folder, lambda: {name: _encode(texts[name], built)[: limits[name]] for name in SPLITS}, built)
    store = TokenStore(
        folder=folder,
        train=np.load(folder / "train.npy", mmap_mode="r"),
        evaluation=np.load(folder / "evaluation.npy", mmap_mode="r"),
        vocab_size=built.get_vocab_size(),
        fingerprint=fingerprint,
        text_sha256=content_key(digests),
        facts=facts,
    )
    for name, tokens in (("train", store.train), ("evaluate", store.evaluation)):
        if len(tokens) < data.seq_len:
            raise DataError(
                f"data.name = {data.name!r}: its {name} split has {len(tokens)} tokens, fewer than one window of "
                f"data.seq_len = {data.seq_len}. Give a longer text or a smaller data.seq_len."
            )
    return store


def keep_arrays(folder: Path, build: Callable[[], dict[str, Examples]], tokenizer: Any) -> None:
    """Build the arrays of a cache entry and store them with their tokenizer, unless some process has done so."""
    with FileLock(_lock_path(folder)):
        if not folder.exists():
            _build_entry(folder, build(), tokenizer)


def _build_entry(folder: Path, arrays: dict[str, Examples], tokenizer: Any) -> None:
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    for name, array in arrays.items():
        np.save(partial / f"{name}.npy", array)
    (partial / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    about = {"tokens": {name: array.size for name, array in arrays.items()}, "vocab_size": tokenizer.get_vocab_size()}
    (partial / "about.json").write_text(json.dumps(about))
    os.rename(partial, folder)


def cache_folder() -> Path:
    """Return `$RAYSWEEP_CACHE`, by default `~/.cache/raysweep`."""
    return Path(os.environ.get("RAYSWEEP_CACHE") or Path.home() / ".cache" / "raysweep")


def windows_of(tokens: Tokens, seq_len: int) -> Tokens:
    """View tokens as consecutive windows (count, seq_len); a tail shorter than a window is left out."""
    count = len(tokens) // seq_len
    return tokens[: count * seq_len].reshape(count, seq_len)


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """The order in which windows are trained on: every epoch a new permutation, no window lost between epochs.

    Stateless: the windows of step `s` follow from the seed and `s`, so a run resumed at any step sees what an
    uninterrupted one would have seen, at any number of ranks.
    """

    num_windows: int
    batch_size: int
    seed: int

    def indices(self, step: int, rank: int = 0, world_size: int = 1) -> npt.NDArray[np.int64]:
        """Return this rank's share of the windows of one step; over all ranks they are the whole batch."""
        positions = np.arange(step * self.batch_size + rank, (step + 1) * self.batch_size, world_size)
        epochs, offsets = np.divmod(positions, self.num_windows)
        order = [_permutation(self.num_windows, self.seed, int(epoch)) for epoch in epochs]
        return np.array([permutation[at] for permutation, at in zip(order, offsets, strict=True)], np.int64)

    def seeds(self, step: int, rank: int = 0, world_size: int = 1) -> npt.NDArray[np.int64]:
        """Return the seeds of this rank's examples of one step, for what a task draws at random in each."""
        positions = np.arange(step * self.batch_size + rank, (step + 1) * self.batch_size, world_size)
        return (self.seed + positions) % 2**62


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def shard(count: int, rank: int, world_size: int) -> npt.NDArray[np.int64]:
    """Return this rank's indices of `count` items: disjoint over ranks, together all of them."""
    return np.arange(rank, count, world_size)


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
    if name is not None and name != wordpiece.WORDPIECE:
        tokenizer, facts = pretrained_tokenizer(name)
        return tokenizer, hashlib.sha256(tokenizer.to_str().encode()).hexdigest(), facts
    size = vocab_size or 0
    recipe: dict[str, Any] = {"train": hashlib.sha256(train.encode()).hexdigest(), "vocab_size": size}
    lines = train.splitlines(keepends=True)
    if name == wordpiece.WORDPIECE:
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

    with FileLock(_lock_path(path)):
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


def _encode(text: str, tokenizer: Any) -> Tokens:
    """Encode a text piece by piece: a tokenizer needs hundreds of bytes for each token that it holds."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    encoded = [np.empty(0, dtype)]
    pieces = blocks_of(text, PIECE_CHARACTERS)
    while batch := list(islice(pieces, PIECES_AT_ONCE)):
        encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
        encoded += [np.array(encoding.ids, dtype) for encoding in encodings]
    return np.concatenate(encoded)


def _lock_path(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".lock")
