"""What all sections of a job have in common: how strictly they are read, and what a name may be."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LONGEST_NAME = 1_000
"""Most characters of a name, path or rule."""
LONGEST_PART = 255
"""Most bytes of a part of a path: what file systems take."""
MEANT = {
    "int_type": "must be a whole number, such as 3; 3.0, '3' and true are none.",
    "float_type": "must be a number, such as 0.5; '0.5' and true are none.",
    "bool_type": "must be true or false.",
    "string_type": "must be text; put it in quotes if it is.",
    "tuple_type": "must be a list, such as [a, b].",
    "model_type": "must be a mapping of keys to values.",
    "missing": "required, but missing.",
}
"""Type of an error of pydantic -> what we say instead."""


class Section(BaseModel):
    """A section of a job: immutable, unknown keys refused, every value of the type that is written in the file."""

    # The docstring under a field is its description in `raysweep schema` and `raysweep help`. Infinity and NaN are
    # refused because a resolved job must survive JSON, which has no word for them. Strict: `trials: true` or '8' is a
    # mistake, and what it would be turned into is not what was written.
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class StrategySection(Section):
    """A section that names a strategy: keys beyond its fields are options of that strategy."""

    # pydantic does not know the strategy's options; checks/strategies.py checks them against the strategy's own fields.
    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _usable(name: str) -> str:
    """Return a name that a file system and a terminal can take.

    Raises:
        ValueError: it is blank, holds a character that is not printed, or a part of it is too long.
    """
    if not name.strip():
        raise ValueError("must not be blank")
    hidden = next((character for character in name if not character.isprintable()), None)
    if hidden is not None:
        about = unicodedata.name(hidden, "a control character")
        raise ValueError(f"holds a character that cannot be seen: U+{ord(hidden):04X}, {about}")
    if any(len(part.encode()) > LONGEST_PART for part in name.split("/")):
        raise ValueError(f"a part between two '/' has more than {LONGEST_PART} bytes, which no file system takes")
    return name


Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_usable)]
"""The name of a strategy, a model or data set, or a path."""


def words_of(detail: Any) -> str:
    """Return what an error of pydantic says, as the end of a sentence that a fault begins."""
    message: str = MEANT.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    message = re.sub(r"^(Input|String|Tuple|List|Dictionary) should", "must", message)
    return f"{message[0].lower()}{message[1:].rstrip('.')}."
