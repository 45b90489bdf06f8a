"""Read YAML files safely; a fault names the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import Fault, SpecError


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe loading that refuses a key written twice (plain YAML silently keeps the last)."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def load_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        SpecError: the file is missing, not UTF-8, not YAML, or not a mapping.
    """

    def refuse(message: str) -> SpecError:
        return SpecError([Fault(file=str(path), key="", message=message)])

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refuse("no such file. Give the path of a YAML file.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise refuse(f"cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 text (byte {error.start}).") from None
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise refuse(f"not valid YAML: {line}{error.problem}.") from None
    except yaml.YAMLError as error:
        raise refuse(f"not valid YAML: {error}.") from None
    if not isinstance(content, dict):
        raise refuse(f"holds {type(content).__name__}, not a mapping of keys to values.")
    return content


def parse_scalar(text: str) -> Any:
    """Read one value as YAML would, for `--set key=value`."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError:
        return text
