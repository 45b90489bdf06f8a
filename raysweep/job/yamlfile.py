"""Read YAML files safely, and write them so that they read back the same. A fault names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import Fault, SpecError

try:
    from yaml import CSafeLoader as _SafeLoader  # ten times faster, and part of PyYAML's own wheels
except ImportError:
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]


class _UniqueKeyLoader(_SafeLoader):
    """A safe loader that refuses a key written twice (plain YAML keeps the last) and reads 5e-5 as a number."""


class _Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which the loader would read as a number."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Return the mapping of a node, or raise an error where it has a key twice."""
    seen: set[Any] = set()
    for key_node, _ in node.value:
        # construct_mapping below refuses a key that is a list or mapping, and resolves the merge key `<<`.
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
# PyYAML follows YAML 1.1, which reads 5e-5, a number without a point, as text. The dumper needs the same rule: it then
# quotes such a text, so that it reads back as one.
for _side in (_UniqueKeyLoader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def load_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        SpecError: the file is missing, not UTF-8, not YAML, or not a mapping.
    """

    def refuse(message: str) -> SpecError:
        return SpecError([Fault(file=str(path), key="", message=message)])

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refuse("no such file. Give the path of a YAML file, or a job of 'raysweep list jobs'.") from None
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 text (byte {error.start}).") from None
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise refuse(f"not valid YAML: {line}{error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a date or a number that does not exist, such as 2024-13-01.
        raise refuse(f"not valid YAML: {error}.") from None
    if not isinstance(content, dict):
        held = "nothing" if content is None else type(content).__name__
        raise refuse(f"holds {held}, not a mapping of keys to values.")
    return content


def dump_mapping(content: Mapping[str, Any]) -> str:
    """Return the text of a YAML file from which `load_mapping` reads the same mapping."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_scalar(text: str) -> Any:
    """Return the value of a text as YAML reads it, for `--set key=value`."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError):
        # Some texts, such as one that begins with @, are not YAML; on a command line they need no quotes.
        return text
