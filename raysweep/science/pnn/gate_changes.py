"""Destroy the pattern of a gate and keep its mean, so that a rise of the loss is due to the pattern alone.

Each function takes gates (batch, tokens, width) in [0, 1] and returns gates of that shape. `dropped` and `noisy` keep
the mean in expectation; the others keep it exactly, of each token or of each dimension over tokens.
"""

from __future__ import annotations

import torch


def dropped(gates: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Close each gate with probability `rate` and scale up the others, as dropout does (Srivastava et al. 2014)."""
    # Drawn on the generator's device, the processor, and moved: every device sees the same draws.
    kept = torch.rand(gates.shape, generator=generator).to(gates) >= rate
    return gates * kept / (1 - rate)


def noisy(gates: torch.Tensor, weight: float, generator: torch.Generator) -> torch.Tensor:
    """Mix each gate with a Bernoulli(gate) sample: g + weight (sample - g), in [0, 1]."""
    # The sample's expectation is the gate itself. Clamped Gaussian noise would not keep the mean.
    coin = (torch.rand(gates.shape, generator=generator).to(gates) < gates).to(gates)
    return torch.lerp(gates, coin, weight)


def permuted(gates: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Permute the dimensions of each token's gates at random, another order for each token."""
    order = torch.rand(gates.shape, generator=generator).argsort(-1).to(gates.device)
    return gates.gather(-1, order)


def inverted(gates: torch.Tensor) -> torch.Tensor:
    """Reverse the ranks of each token's gates: the widest gate goes where the narrowest was.

    That is the order of 1 - g, but with the token's own values, so that their mean and spread stay.
    """
    # argsort of argsort is the rank of each entry.
    ranks = gates.argsort(-1).argsort(-1)
    return gates.sort(-1, descending=True).values.gather(-1, ranks)


def token_mean(gates: torch.Tensor) -> torch.Tensor:
    """Replace the gates of each token by their mean over dimensions."""
    return gates.mean(-1, keepdim=True).expand_as(gates)


def swapped(gates: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Replace the gates of each token by those of another token of its batch; padding keeps its own.

    Args:
        real: (batch, tokens), True where a token is no padding; at least 2 of them.
    """
    places = torch.randperm(int(real.sum()), generator=generator).to(gates.device)
    donors = torch.empty_like(places)
    # A random permutation could leave tokens in place. One cycle through all of them, in random order, cannot.
    donors[places] = places.roll(1)
    found = gates.clone()
    found[real] = gates[real][donors]
    return found
