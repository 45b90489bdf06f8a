"""What all sections of a job have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a job: immutable, unknown keys refused."""

    # The docstring under a field is its description in `raysweep schema` and `raysweep help`. Infinity and NaN are
    # refused because a resolved job must survive JSON, which has no word for them.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StrategySection(Section):
    """A section that names a strategy: keys beyond its fields are options of that strategy."""

    # pydantic does not know the strategy's options; checks/strategies.py checks them against the strategy's own fields.
    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})
