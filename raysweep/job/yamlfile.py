"""Read YAML files safely, and write them so that they read back the same. A fault names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import Fault, SpecError
from raysweep.job.yamlvalues import UnreadableYamlError, read_values, reads_as_text

MOST_BYTES = 1_000_000
"""Size of the largest file that is read: a hundred times that of any job of raysweep."""


class _Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which a reader of YAML 1.1 or of YAML 1.2 takes for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        # Two sections with an equal value are no reason to write one of them as a reference to the other.
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML itself quotes what YAML 1.1 takes for something else, such as yes or 1:30. Line ends beside \n, such as
    # U+2028, survive in double quotes alone, where they are escaped.
    plain = text.isprintable() and reads_as_text(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)
# PyYAML writes 1e-05 as 1.0e-05, which its own rules read as a number; those of YAML 1.2 do, too.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$"), None)


def load_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        SpecError: the file is missing, too large, not UTF-8, not YAML, or not a mapping.
    """

    def refuse(message: str) -> SpecError:
        return SpecError([Fault(file=str(path), key="", message=message)])

    try:
        with path.open("rb") as file:
            # One byte more than allowed, and never all: the file may be a device that has no end.
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise refuse(f"larger than {MOST_BYTES:,} bytes, so hardly the file that is meant.")
        # utf-8-sig: some editors begin a file with a mark of its encoding.
        values = read_values(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise refuse("no such file. Give the path of a YAML file, or a job of 'raysweep list jobs'.") from None
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 text (byte {error.start}).") from None
    except UnreadableYamlError as error:
        raise refuse(f"{error}.") from None
    if not isinstance(values, dict):
        held = "nothing" if values is None else type(values).__name__
        raise refuse(f"holds {held}, not a mapping of keys to values.")
    return values


def dump_mapping(content: Mapping[str, Any]) -> str:
    """Return the text of a YAML file from which `load_mapping` reads the same mapping."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_scalar(text: str) -> Any:
    """Return the value of a text as YAML reads it, for `--set key=value`."""
    try:
        return read_values(text)
    except UnreadableYamlError:
        # Some texts, such as one that begins with @, are not YAML; on a command line they need no quotes.
        return text
