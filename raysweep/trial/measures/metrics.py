"""Metrics of classifiers beside accuracy, from a confusion matrix.

A confusion matrix is a sum over examples, so the ranks' matrices can be added up; the metrics themselves cannot.
"""

from __future__ import annotations

import numpy as np

from raysweep.contracts import Array


def classification_metrics(confusion: Array) -> dict[str, float]:
    """Return the metrics that GLUE asks for (Wang et al. 2019, table 1).

    `matthews` is Matthews' correlation (CoLA's metric), of more than two classes R_K (Gorodkin 2004); 0 if every
    example is predicted to be of one class. `f1` is the F1 score of the second of two classes (MRPC's and QQP's
    metric), or the mean over more than two; 0 if no example of the class is found.

    Args:
        confusion: numbers of examples, [class][predicted class].
    """
    # Imported here, because scikit-learn takes a while and only classifiers need it.
    from sklearn.metrics import f1_score, matthews_corrcoef

    # scikit-learn takes examples, not counts: each cell of the matrix is one example with its count as the weight.
    truth, predicted = np.indices(confusion.shape).reshape(2, -1)
    counts = confusion.ravel()
    average = "binary" if len(confusion) == 2 else "macro"
    return {
        "matthews": float(matthews_corrcoef(truth, predicted, sample_weight=counts)),
        "f1": float(f1_score(truth, predicted, average=average, sample_weight=counts, zero_division=0.0)),
    }
