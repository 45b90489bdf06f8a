"""Read and write values of nested mappings by dotted path, and copy them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEEPEST = 8
"""Most parts of a dotted path: a setting has four, and whatever walks nested mappings needs its stack."""


def get_path(mapping: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None where a part is missing."""
    value: Any = mapping
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def set_path(mapping: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path in place; parts of the path that are no mappings become mappings."""
    parts = path.split(".")
    for part in parts[:-1]:
        # A section that is switched off, `grow: null`, is switched on by a value inside it.
        if not isinstance(mapping.get(part), dict):
            mapping[part] = {}
        mapping = mapping[part]
    mapping[parts[-1]] = value


def copied(value: Any) -> Any:
    """Return a copy of nested mappings and lists; what lies in them is not copied."""
    # Several times faster than copy.deepcopy, and every trial and every tried point of a space needs a copy.
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value
