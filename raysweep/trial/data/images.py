"""Load labelled images that need no download: the handwritten digits that ship inside scikit-learn."""

from __future__ import annotations

import numpy as np

from raysweep.contracts import Examples, Facts
from raysweep.job.spec import DataSpec
from raysweep.trial.data.corpora import check_names_no_split, in_evaluation


def load_images(data: DataSpec) -> tuple[dict[str, Examples], Facts]:
    """Return rows of (label, 8 x 8 pixels) of each split, and the facts about them.

    1,797 digits of 43 people, grey from 0 to 16 (Alpaydin and Kaynak 1998, UCI repository).

    Raises:
        DataError: the job names splits, of which there are none.
    """
    check_names_no_split(data, "set")
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.column_stack([digits.target, digits.data]).astype(np.uint8)
    # By the hash of the pixels alone, so that equal images are in one split whatever their labels.
    held_out = np.array([in_evaluation(row[1:].tobytes()) for row in rows])
    facts = Facts(num_classes=10, image_shape=(1, 8, 8), brightest=16)
    return {"train": rows[~held_out], "evaluation": rows[held_out]}, facts
