"""Weigh the steps in training: fixed weights, or exit probabilities with a prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from raysweep.networks.pnn.forms import StepWeights


def step_weights(form: StepWeights, steps: int) -> list[float]:
    """Return the weight of each of T steps' losses; they sum to 1.

    `linear` is 2 t / (T (T + 1)), the published 0.1 to 0.4 at T = 4; `geometric` doubles from step to step.
    """
    raw = {
        "linear": [float(step) for step in range(1, steps + 1)],
        "uniform": [1.0] * steps,
        "last": [0.0] * (steps - 1) + [1.0],
        "geometric": [2.0 ** (step - steps) for step in range(1, steps + 1)],
    }[form]
    # Normalised, so that losses are comparable whatever the form and the number of steps are.
    return [weight / sum(raw) for weight in raw]


def exit_probabilities(leave: torch.Tensor) -> torch.Tensor:
    """Return the probability of leaving at each step (PonderNet, Banino et al. 2021, section 2), (steps, tokens).

    Args:
        leave: (steps, tokens), logits of leaving at a step for a token that has not left before; at the last step every
            token leaves, whatever its logit.
    """
    # log(1 - sigmoid(x)) is logsigmoid(-x). Sums of logarithms instead of products: no underflow over many
    # steps.
    stay = functional.logsigmoid(-leave[:-1]).cumsum(0)
    still_there = torch.cat([torch.zeros_like(leave[:1]), stay])
    return torch.cat([(still_there[:-1] + functional.logsigmoid(leave[:-1])), still_there[-1:]]).exp()


def geometric_prior(prior: float, steps: int) -> Sequence[float]:
    """Return the geometric distribution over steps that `ponder` is regularised towards; the last step has its tail."""
    chances = [prior * (1 - prior) ** step for step in range(steps - 1)]
    return [*chances, 1 - sum(chances)]


def divergence(probabilities: torch.Tensor, prior: float) -> torch.Tensor:
    """Return KL(exit probabilities || prior) of each token, (tokens,)."""
    target = probabilities.new_tensor(geometric_prior(prior, len(probabilities)))[:, None]
    # The logarithm of an exit that is never taken would be infinite, and its gradient NaN. Clamping keeps p log p at 0.
    logs = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
    return (probabilities * (logs - target.log())).sum(0)
