"""Hold parts of a network at their means, and measure the loss of the same masked tokens.

The mean holds no information about the input, yet is of the usual size: zero would be a value that later parts never
saw in training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, Batch
from raysweep.networks.plasticity.objective import label_losses
from raysweep.science.pnn.activity import real_tokens
from raysweep.science.pnn.interventions import Part, changed, part_outputs, step_states


@torch.no_grad()
def final_losses(network: Any, batches: Sequence[Batch]) -> Array:
    """Return the loss of every labelled token after the last step, nats, (tokens,), in the order of the batches."""
    rows = []
    for batch in batches:
        assert batch.labelled is not None
        state = step_states(network, batch)[-1]
        logits = network.predict(state.flatten(0, 1)[batch.labelled])
        rows.append(label_losses(logits, batch.labels.flatten()[batch.labelled]).double().cpu().numpy())
    return np.concatenate(rows)


@torch.no_grad()
def part_means(network: Any, part: Part, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Return the mean over tokens, padding left out, of what a part puts out at each of its calls in a pass.

    Returns:
        (width,) for each call, in the precision of the network; (heads, head_dim) for `heads`.
    """
    # Sums of all batches over one count, not a mean of batch means: batches hold unequally many tokens.
    sums = [part_outputs(network, part, batch, partial(_sum_over, real_tokens(batch))) for batch in batches]
    count = sum(int(real_tokens(batch).sum()) for batch in batches)
    dtype = next(network.parameters()).dtype
    return [(torch.stack(call).sum(0) / count).to(dtype) for call in zip(*sums, strict=True)]


def _sum_over(tokens: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return the sum in fp64 of an output (batch, tokens, ...) over the tokens that are True."""
    return output[tokens].double().sum(0)


@contextmanager
def held_at(
    network: Any, means: dict[Part, list[torch.Tensor]], parts: Collection[Part], steps: Collection[int]
) -> Iterator[None]:
    """Replace the outputs of some parts by their means at some steps; later layers and steps see the replacement.

    Args:
        means: of each part, as `part_means` returns them.
        steps: counted from 0.
    """
    with ExitStack() as stack:
        for part in parts:
            # One mean for each call of a pass, in their order: the blocks of a hierarchical refiner have a mean each.
            # The cycle begins anew with each pass, as every pass makes the same calls.
            calls = cycle(means[part])

            # `calls` is bound as a default: a closure would see the calls of the last part in every hook.
            def hold(step: int, output: torch.Tensor, calls: Any = calls) -> torch.Tensor:
                mean = next(calls)
                return mean.expand_as(output) if step in steps else output

            stack.enter_context(changed(network, part, hold))
        yield
