"""Load labelled images that need no download: the handwritten digits that ship inside scikit-learn."""

from __future__ import annotations

import numpy as np

from raysweep.contracts import Examples, Facts
from raysweep.job.names import DIGITS
from raysweep.job.spec import DataSpec
from raysweep.trial.data.splits import Corpus, Split, check_names_no_split, check_no_table, in_evaluation


def load_images(data: DataSpec) -> tuple[dict[str, Examples], Facts]:
    """Return rows of (label, 8 x 8 pixels) of each split, and the facts about them.

    1,797 digits of 43 people, grey from 0 to 16 (Alpaydin and Kaynak 1998, UCI repository).

    Raises:
        DataError: the job names splits, of which there are none.
    """
    check_names_no_split(data, "set")
    check_no_table(data, DIGITS)
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.column_stack([digits.target, digits.data]).astype(np.uint8)
    # By the hash of the pixels alone, so that equal images are in one split whatever their labels.
    held_out = np.array([in_evaluation(row[1:].tobytes()) for row in rows])
    facts = Facts(num_classes=10, image_shape=(1, 8, 8), brightest=16)
    return {"train": rows[~held_out], "choose": rows[held_out]}, facts


def image_samples() -> Corpus[str]:
    """Return where the splits come from; images have no beginning that could be printed."""
    source = "the digits inside scikit-learn"
    return Corpus(
        train=Split(content="", origin=f"nine parts in ten of {source}, by their hash"),
        choose=Split(content="", origin=f"one part in ten of {source}, by its hash"),
    )
