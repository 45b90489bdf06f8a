"""Labelled images that need no download: the handwritten digits that ship inside scikit-learn."""

from __future__ import annotations

import numpy as np

from raysweep.contracts import Examples, Facts
from raysweep.errors import DataError
from raysweep.job.names import DIGITS
from raysweep.job.spec import DataSpec
from raysweep.trial.data.corpora import in_evaluation


def load_images(data: DataSpec) -> tuple[dict[str, Examples], Facts]:
    """Return rows of (label, 8 x 8 pixels) of each split, and what they are; equal images stand in one split.

    1,797 digits of 43 people, grey from 0 to 16 (Alpaydin and Kaynak 1998, UCI repository).

    Raises:
        DataError: the job names splits, of which there are none.
    """
    for key, name in (("data.train", data.train), ("data.evaluate", data.evaluate)):
        if name is not None:
            raise DataError(f"{key} = {name!r}: data.name = {DIGITS!r} is one set without splits. Remove {key}.")
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.column_stack([digits.target, digits.data]).astype(np.uint8)
    held_out = np.array([in_evaluation(row[1:].tobytes()) for row in rows])
    facts = Facts(num_classes=10, image_shape=(1, 8, 8), brightest=16)
    return {"train": rows[~held_out], "evaluation": rows[held_out]}, facts
