"""Metrics of classifiers beside accuracy, from counts of what was taken for what, so that all ranks count together."""

from __future__ import annotations

import numpy as np

from raysweep.contracts import Array


def classification_metrics(confusion: Array) -> dict[str, float]:
    """Return the metrics that GLUE asks for (Wang et al. 2019, table 1).

    `matthews` is Matthews' correlation, CoLA's; of several classes its R_K (Gorodkin 2004); 0 where all are taken for
    one class. `f1` is that of the second of two classes, MRPC's and QQP's, or the mean over several; 0 where none is
    found.

    Args:
        confusion: [class][predicted class], numbers of examples.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    truth, predicted = np.indices(confusion.shape).reshape(2, -1)
    counts = confusion.ravel()
    average = "binary" if len(confusion) == 2 else "macro"
    return {
        "matthews": float(matthews_corrcoef(truth, predicted, sample_weight=counts)),
        "f1": float(f1_score(truth, predicted, average=average, sample_weight=counts, zero_division=0.0)),
    }
