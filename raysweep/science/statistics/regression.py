"""Test the slope of a value in one variable at equal covariates, with a level of its own for each sequence."""

from __future__ import annotations

import numpy as np

from raysweep.contracts import Array
from raysweep.errors import DataError
from raysweep.science.statistics.finding import Comparison
from raysweep.science.statistics.resampling import PERCENTILES, RESAMPLES, ROUNDING, Ints, share_as_extreme, totals


def partial_slope(
    name: str, values: Array, variable: Array, covariates: Array, sequences: Ints, generator: np.random.Generator
) -> Comparison:
    """Test whether values (tokens,) change with a variable (tokens,) at equal covariates (tokens, covariates).

    The slope is that of least squares with an intercept for each sequence, by partialling out (Frisch and Waugh
    1933). The p-value comes from residuals permuted within sequences (Freedman and Lane 1983), the interval from a
    bootstrap of whole sequences.

    Args:
        sequences: (tokens,), sorted.

    Raises:
        DataError: as `partialled`.
    """
    # Residuals are permuted, not raw values: those depend on the covariates and on the sequence under the null, too.
    x, y = partialled(values, variable, covariates, sequences)
    spread, slope = float(x @ x), slope_of(x, y)
    null = np.array([x @ y[_within(sequences, generator)] for _ in range(RESAMPLES)]) / spread
    low, high = _interval(x * y, x * x, sequences, generator)
    return Comparison(
        name=name, effect=slope, low=low, high=high, p_value=share_as_extreme(abs(slope), np.abs(null)),
        count=len(np.unique(sequences)),
    )  # fmt: skip


def partialled(values: Array, variable: Array, covariates: Array, sequences: Ints) -> tuple[Array, Array]:
    """Return the residuals of the variable and of the values after covariates and sequences, (tokens,) each.

    Raises:
        DataError: the variable is a linear function of the covariates within every sequence.
    """
    others = _centred(covariates, sequences)
    x, y = (_residual(_centred(column[:, None], sequences), others)[:, 0] for column in (variable, values))
    # A residual of rounding errors alone would give a slope of noise over noise.
    if x @ x <= ROUNDING * np.square(variable).sum():
        raise DataError(
            "difficulty does not vary within sequences at equal covariates. Measure on more, with --eval-tokens or a "
            "longer --seq-len."
        )
    return x, y


def slope_of(x: Array, y: Array) -> float:
    """Return the least-squares slope of y in x, (tokens,) each, through the origin: both are residuals."""
    return float(x @ y / (x @ x))


def _centred(columns: Array, sequences: Ints) -> Array:
    """Return columns (tokens, columns) minus their means within sequences."""
    sums, counts = totals(columns.astype(float), sequences)
    _, index = np.unique(sequences, return_inverse=True)
    return columns - (sums / counts[:, None])[index]


def _residual(columns: Array, others: Array) -> Array:
    """Return columns (tokens, columns) minus their least-squares fit by others (tokens, covariates)."""
    return columns - others @ np.linalg.lstsq(others, columns, rcond=None)[0]


def _within(sequences: Ints, generator: np.random.Generator) -> Ints:
    """Return a random order of tokens that leaves each in its sequence; `sequences` is sorted."""
    # The last key of lexsort is the first to sort by: sequences in order, random numbers within each.
    return np.lexsort((generator.random(len(sequences)), sequences))


def _interval(products: Array, squares: Array, sequences: Ints, generator: np.random.Generator) -> tuple[float, float]:
    """Return the bounds of the slope's interval, a ratio of two sums over tokens, bootstrapped by sequence."""
    sums, counts = totals(np.stack([products, squares], 1), sequences)
    number = len(counts)
    # The residuals stay those of all sequences: the covariates' coefficients are not fitted anew in each sample.
    drawn = generator.multinomial(number, np.full(number, 1 / number), size=RESAMPLES) @ sums
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], PERCENTILES)
    return float(low), float(high)
