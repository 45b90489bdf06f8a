"""Count the floating-point operations that a network really runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(kw_only=True)
class Work:
    """FLOPs spent so far; the counter's hooks and the attention of the remaining tokens add to it."""

    flops: int = 0


@contextmanager
def counted(network: nn.Module) -> Iterator[Work]:
    """Count the FLOPs of a network's linear layers and convolutions inside the block.

    The two products inside attention belong to no layer, so the code that attends adds them to the yielded `Work`.
    """
    work = Work()

    # Each output element is one dot product over the module's inputs. Weights times the number of output *rows* counts
    # them all, whatever the leading shape is: flat remaining tokens, or whole windows.
    def linear(module: Any, inputs: Any, output: torch.Tensor) -> None:
        work.flops += 2 * module.weight.numel() * (output.numel() // module.out_features)

    def convolution(module: Any, inputs: Any, output: torch.Tensor) -> None:
        work.flops += 2 * module.weight.numel() * (output.numel() // module.out_channels)

    hooks = [
        module.register_forward_hook(count)
        for kind, count in ((nn.Linear, linear), (nn.Conv2d, convolution))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()
