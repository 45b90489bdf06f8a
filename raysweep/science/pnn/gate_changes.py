"""Ways to spoil a gate's pattern and leave its mean as it is: all that a loss can then be due to is the pattern.

Each takes gates (batch, tokens, width) in [0, 1] and returns as many. `dropped` and `noisy` keep the mean in
expectation, the others exactly: of each token, or of each dimension over tokens.
"""

from __future__ import annotations

import torch


def dropped(gates: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Close a share of all gates and open the others wider, as dropout does (Srivastava et al. 2014)."""
    kept = torch.rand(gates.shape, generator=generator).to(gates) >= rate
    return gates * kept / (1 - rate)


def noisy(gates: torch.Tensor, weight: float, generator: torch.Generator) -> torch.Tensor:
    """Go part of the way to a coin that is 1 with the gate's own probability: g + weight (coin - g), in [0, 1].

    Clamped Gaussian noise would not keep the mean.
    """
    coin = (torch.rand(gates.shape, generator=generator).to(gates) < gates).to(gates)
    return torch.lerp(gates, coin, weight)


def permuted(gates: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Give each token its own gates in a random order of dimensions."""
    order = torch.rand(gates.shape, generator=generator).argsort(-1).to(gates.device)
    return gates.gather(-1, order)


def inverted(gates: torch.Tensor) -> torch.Tensor:
    """Give each token its own gates by opposite ranks: open widest where it was narrowest.

    The order is that of 1 - g; the values are the token's own, so that their mean and spread are, too.
    """
    ranks = gates.argsort(-1).argsort(-1)
    return gates.sort(-1, descending=True).values.gather(-1, ranks)


def token_mean(gates: torch.Tensor) -> torch.Tensor:
    """Give every dimension of a token the mean of its gates."""
    return gates.mean(-1, keepdim=True).expand_as(gates)


def swapped(gates: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Give each token the gates of another one of its batch; padding keeps its own.

    Args:
        real: (batch, tokens), which are no padding; at least 2.
    """
    places = torch.randperm(int(real.sum()), generator=generator).to(gates.device)
    donors = torch.empty_like(places)
    donors[places] = places.roll(1)  # one cycle through all tokens: none is its own donor
    found = gates.clone()
    found[real] = gates[real][donors]
    return found
