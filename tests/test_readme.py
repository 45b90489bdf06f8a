"""What the README and the docs say can be typed, their links lead somewhere, and every figure was measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from support.jobs import REPOSITORY

from benchmarks.figures import PAGE, page
from raysweep.cli import main

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
REFERENCE = REPOSITORY / "results" / "reference"
LONGEST = 130
"""Lines that the README may have."""


def commands(text: str) -> list[str]:
    """Return every line of every shell block, comments and output left out."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


IN_README = commands(README)
EVERYWHERE = sorted({*IN_README, *(line for path in DOCS for line in commands(path.read_text(encoding="utf-8")))})
RAYSWEEP = [line for line in EVERYWHERE if line.split()[0].endswith("raysweep")]
MAKE = [line for line in EVERYWHERE if line.startswith("make ")]


def test_the_readme_is_short_and_shows_commands() -> None:
    assert len(README.splitlines()) <= LONGEST and "@@" not in README
    assert len(RAYSWEEP) >= 30 and {"make quickstart", "make test", "make quick"} <= set(IN_README)


def test_the_tree_of_the_readme_names_every_room() -> None:
    rooms = {path.name for path in (REPOSITORY / "raysweep").iterdir() if (path / "__init__.py").is_file()}
    tree = README.partition("## The tree")[2]
    assert rooms == set(re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE))


@pytest.mark.parametrize("line", RAYSWEEP)
def test_a_quoted_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command = main.commands[words[0]]
    arguments = [word for word in words[1:] if word not in ("-f",)]
    # as the program would parse it: a command remembers the help options of the first context it meets
    parent = click.Context(main, **main.context_settings)
    with command.make_context(words[0], arguments, parent=parent) as context:
        assert isinstance(context, click.Context)


@pytest.mark.parametrize("line", MAKE)
def test_a_quoted_make_target_exists(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


def test_the_page_of_figures_is_made_from_what_was_measured() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.json")), ids=lambda path: path.stem)
def test_a_reference_says_how_it_was_made(path: Path) -> None:
    content = json.loads(path.read_text())
    assert {"command", "commit", "date", "machine", "figures"} <= set(content)
    assert {"cpu", "cores", "device"} == set(content["machine"])
    for figure in content["figures"]:
        assert {"name", "measured", "asked", "unit", "baseline", "runs"} == set(figure)
        assert figure["runs"]["min"] <= figure["measured"] <= figure["runs"]["max"]


@pytest.mark.parametrize("file", [REPOSITORY / "README.md", *DOCS], ids=lambda path: path.name)
def test_every_link_leads_somewhere(file: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("https://") and not (file.parent / link).exists()] == []
