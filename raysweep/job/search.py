"""The `search` section of a job: what is searched, by what, and how results are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, field_validator

from raysweep.job import bounds
from raysweep.job.section import LONGEST_NAME, Name, Section, StrategySection

Control = Literal["dense", "no_regrow", "random_random", "rewind", "from_scratch_small"]
Objective = Literal["loss", "perplexity", "error_rate", "flops_per_token", "params", "active_heads"]
Rule = Annotated[str, Field(max_length=LONGEST_NAME)]
# The discriminator picks the form first, so that a misspelt objective is one fault and not one for each form.
Objectives = Annotated[
    Annotated[Objective, Tag("one")]
    | Annotated[tuple[Objective, ...], Field(strict=False, max_length=len(get_args(Objective))), Tag("several")],
    Discriminator(lambda given: "several" if isinstance(given, list | tuple) else "one"),
]
# Objectives are minimized, so accuracy is none of them; error_rate stands for it there.
MEASURED = (*get_args(Objective), "accuracy")
"""Numbers of every phase record that a constraint may name."""


class SamplerSpec(StrategySection):
    name: Name = "tpe"
    """A file in raysweep/strategies/samplers/, or the dotted name of a module."""


class StoppingSpec(StrategySection):
    name: Name = "none"
    """A file in raysweep/strategies/schedulers/, or the dotted name of a module. Every rule but `none` needs
    training.evaluate_every."""


class SearchSpec(Section):
    space: Name | dict[str, Any] | None = None
    """The search space: a YAML file, looked for from the working folder, the job's folder and the folder above it; or
    the space itself. Default: there is a single trial."""
    trials: int = Field(default=1, ge=1, le=bounds.TRIALS)
    """Points that the sampler proposes. Replicates on more seeds, confirmations and forks come on top."""
    minimize: Objectives = "loss"
    """What the search minimizes, measured on held-out data in the phase that is a trial's result; or a list of several,
    whose best trials form a Pareto front."""
    constraints: tuple[Rule, ...] = Field(default=(), strict=False, max_length=bounds.RULES)
    """Comparisons that a good trial meets, such as `perplexity <= 1.1 * baseline.perplexity`: `perplexity` is that of
    the trial's result, `baseline.perplexity` that of its last phase of this kind. A trial that misses one is COMPLETE,
    but cannot be the best."""
    sampler: SamplerSpec = SamplerSpec()
    """What proposes the points of the search space."""
    stopping: StoppingSpec = StoppingSpec()
    """What ends unpromising trials early. Default: nothing does."""
    seeds: int = Field(default=1, ge=1, le=bounds.SEEDS)
    """Seeds on which the best points are run. The search uses the job's own seed; its `top` points are repeated on the
    seeds that follow. The winner is then confirmed on as many fresh seeds, since the best of many is partly the
    luckiest."""
    top: int | None = Field(default=None, ge=1, le=bounds.TRIALS)
    """Best points of the search that are run on all seeds. Default: all points."""
    controls: tuple[Control, ...] = Field(default=(), strict=False, max_length=len(get_args(Control)))
    """Control arms that every trial runs beside its own phases, on the same data in the same order; phases that are
    equal are run once. `dense` trains on for the same steps without pruning, and recovery is measured against it.
    `no_regrow` prunes and does not grow. `random_random` prunes and grows at random. `rewind` starts new heads from the
    weights that they were removed with. `from_scratch_small` trains a new model with as many heads in each layer as the
    trial ends with, for all its steps."""

    @field_validator("space", mode="before")
    @classmethod
    def _file_or_space(cls, space: Any) -> Any:
        # pydantic alone would name one fault for each of the types that a space may have.
        if not isinstance(space, str | Mapping | None):
            raise ValueError("must be the path of a search-space file, or the space itself")
        return space
