"""The one way a model is measured: held-out loss on fixed windows, and text it writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from raysweep.core.data import Tokens, shard
from raysweep.core.runtime import Runtime
from raysweep.errors import DivergedError
from raysweep.plasticity.model import PlasticModel

PROMPTS, PROMPT_TOKENS, NEW_TOKENS, NGRAM = 3, 16, 32, 3


def token_losses(logits: torch.Tensor, tokens: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the next-token loss of windows: seq_len - 1 predictions each.

    Args:
        logits: (batch, tokens, vocabulary).
        tokens: (batch, tokens).
    """
    targets = functional.pad(tokens[:, 1:], (0, 1), value=-100)  # the last token has nothing to predict
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(model: PlasticModel, windows: Tokens, batch_size: int, runtime: Runtime, precision: str) -> float:
    """Return the mean loss per predicted token in nats, over all ranks' shares of the windows (any number).

    Raises:
        DivergedError: it is not finite.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    for batch in batches(windows, batch_size, runtime):
        with runtime.autocast(precision):
            losses = token_losses(model(batch), batch, reduction="sum")
        total += torch.stack([losses.double(), losses.new_tensor(batch.shape[0] * (batch.shape[1] - 1)).double()])
    model.train(was_training)
    loss_sum, count = runtime.all_reduce(total).tolist()
    loss = loss_sum / count
    if not math.isfinite(loss):
        raise DivergedError(f"the held-out loss is {loss}.")
    return loss


def batches(windows: Tokens, batch_size: int, runtime: Runtime) -> list[torch.Tensor]:
    """Return this rank's share of the windows as batches of token ids on its device."""
    mine = windows[shard(len(windows), runtime.rank, runtime.world_size)]
    return [to_device(mine[at : at + batch_size], runtime) for at in range(0, len(mine), batch_size)]


def to_device(windows: Tokens, runtime: Runtime) -> torch.Tensor:
    return torch.from_numpy(windows.astype("int64")).to(runtime.device)


@torch.no_grad()
def write_samples(model: PlasticModel, windows: Tokens, tokenizer: Any, runtime: Runtime) -> list[dict[str, Any]]:
    """Continue the beginnings of the first held-out windows greedily, and say how much each repeats itself."""
    was_training = model.training
    model.eval()
    prompt_tokens = min(PROMPT_TOKENS, windows.shape[1] // 2)
    new_tokens = min(NEW_TOKENS, windows.shape[1] - prompt_tokens)
    prompts = to_device(windows[:PROMPTS, :prompt_tokens], runtime)
    network: Any = model.network
    written = network.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=False, use_cache=True,
        min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0,
    )[:, prompt_tokens:].tolist()  # fmt: skip
    model.train(was_training)
    return [
        {"prompt": tokenizer.decode(prompt), "text": tokenizer.decode(text), "repetition": repetition(text)}
        for prompt, text in zip(prompts.tolist(), written, strict=True)
    ]


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of 3-grams that occurred before in the same text; 0 for text too short to repeat."""
    grams = Counter(tuple(tokens[at : at + NGRAM]) for at in range(len(tokens) - NGRAM + 1))
    total = sum(grams.values())
    return (total - len(grams)) / total if total else 0.0
