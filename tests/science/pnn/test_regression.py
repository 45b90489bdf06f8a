"""A slope at equal covariates, against one regression with a column for each sequence."""

from __future__ import annotations

import numpy as np
import pytest

from raysweep.errors import DataError
from raysweep.science.statistics import regression
from raysweep.science.statistics.regression import partial_slope

SEQUENCES = np.repeat(np.arange(20), np.tile([6, 9], 10))


def drawn(seed: int, slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    covariates = generator.normal(size=(len(SEQUENCES), 2))
    variable = covariates[:, 0] + generator.normal(size=len(SEQUENCES)) + generator.normal(size=20)[SEQUENCES]
    noise = generator.normal(size=len(SEQUENCES)) + 3 * generator.normal(size=20)[SEQUENCES]
    return slope * variable + covariates @ [2.0, -1.0] + noise, variable, covariates


def test_the_slope_is_that_of_one_regression_with_a_column_for_each_sequence() -> None:
    values, variable, covariates = drawn(0, 0.7)
    found = partial_slope("planted", values, variable, covariates, SEQUENCES, np.random.default_rng(0))
    design = np.column_stack([variable, covariates, np.eye(20)[SEQUENCES]])
    assert found.effect == pytest.approx(np.linalg.lstsq(design, values, rcond=None)[0][0])
    assert found.p_value < 0.01 and found.low < 0.7 < found.high and found.count == 20


def test_a_variable_that_only_goes_with_a_covariate_is_found_as_often_as_alpha_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(regression, "RESAMPLES", 200)
    generator = np.random.default_rng(1)
    p_values = [partial_slope("", *drawn(seed, 0.0), SEQUENCES, generator).p_value for seed in range(200)]
    assert 0.01 < np.mean(np.array(p_values) <= 0.05) < 0.1


def test_a_variable_that_does_not_vary_within_sequences_is_an_error() -> None:
    values, _, covariates = drawn(0, 0.0)
    with pytest.raises(DataError, match="does not vary"):
        partial_slope("", values, SEQUENCES.astype(float), covariates, SEQUENCES, np.random.default_rng(0))
