"""The forms of a PNN, and which of them go together; imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Trunk = Literal["refiner", "hierarchical", "layers", "shared_layer"]
GateForm = Literal["query_key", "constant", "scalar", "none"]
Init = Literal["reference", "zero"]
StepWeights = Literal["linear", "uniform", "last", "geometric", "ponder"]


STACKS = ("layers", "shared_layer")
"""Trunks of BERT's layers, which have no gate and normalise after each residual."""


def conflict(trunk: Trunk, gate: GateForm, init: Init, random_depth: bool) -> str | None:
    """Return which forms do not go together and the way out, or None if all do."""
    if gate != "query_key" and trunk in STACKS:
        return f"gate {gate!r} needs a refiner: a trunk of {trunk!r} has no gate. Leave gate out."
    # `zero` closes the norm behind the feed-forward part. In these trunks that norm is on the state's own path,
    # and closing it would erase the state instead of the update.
    if init == "zero" and trunk in STACKS:
        return f"init 'zero' needs a refiner: a trunk of {trunk!r} normalises after residuals. Use init 'reference'."
    if random_depth and trunk == "layers":
        return "random_depth is for a module that is applied again: a trunk of 'layers' ends with its last one."
    return None


def mask_fault(rows: Sequence[Sequence[float]], heads: int) -> str | None:
    """Return what is wrong with a head mask by step, or None if every row has a number for each head."""
    if not rows or any(len(row) != heads for row in rows):
        return f"step_head_mask takes at least one row, each of {heads} numbers: one for each head."
    return None
