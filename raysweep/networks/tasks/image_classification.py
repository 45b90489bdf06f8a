"""Predict the class of an image from pixels between -1 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from raysweep import contracts
from raysweep.contracts import Batch, Examples, Facts


@dataclass(frozen=True, kw_only=True)
class Task(contracts.Task):
    reads: ClassVar[Literal["images"]] = "images"
    needs: ClassVar[tuple[str, ...]] = ("num_classes", "image_shape", "brightest")
    new_head: ClassVar[bool] = True
    model_class: ClassVar[str] = "AutoModelForImageClassification"
    causal: ClassVar[bool] = False
    even: ClassVar[bool] = True
    predicted: ClassVar[float] = 1.0
    facts: Facts = Facts()

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        assert self.facts.image_shape is not None and self.facts.brightest is not None
        # A row is the label, then the pixels by channel, row and column.
        pixels = torch.from_numpy(examples[:, 1:].astype(np.float32)).unflatten(1, self.facts.image_shape)
        labels = torch.from_numpy(examples[:, 0].astype(np.int64))
        # [0, brightest] to [-1, 1].
        return Batch(inputs=pixels * (2 / self.facts.brightest) - 1, labels=labels)
