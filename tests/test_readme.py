"""What the README says can be typed, and every figure it quotes was measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from support.jobs import REPOSITORY

from raysweep.cli import main

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
REFERENCE = REPOSITORY / "results" / "reference"


def commands() -> list[str]:
    """Every line of every shell block, comments and output left out."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


RAYSWEEP = [line for line in commands() if line.split()[0].endswith("raysweep")]
MAKE = [line for line in commands() if line.startswith("make ")]
QUOTED = re.findall(r"\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|", README)


def test_the_readme_shows_commands_and_figures() -> None:
    assert len(RAYSWEEP) >= 8 and {"make quickstart", "make test"} <= set(MAKE) and len(QUOTED) >= 5


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


@pytest.mark.parametrize(("benchmark", "name", "measured", "asked"), QUOTED)
def test_a_quoted_figure_was_measured(benchmark: str, name: str, measured: str, asked: str) -> None:
    figures = json.loads((REFERENCE / f"{benchmark}.json").read_text())["figures"]
    known = {one["name"]: one for one in figures}
    assert name in known, f"{benchmark}.json has {sorted(known)}"
    number = float(measured.split()[0])
    digits = len(measured.split()[0].partition(".")[2])
    assert number == pytest.approx(known[name]["measured"], abs=0.5001 * 10**-digits)
    assert asked == known[name]["asked"]


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.json")), ids=lambda path: path.stem)
def test_a_reference_says_how_it_was_made(path: Path) -> None:
    content = json.loads(path.read_text())
    assert {"command", "commit", "date", "machine", "figures"} <= set(content)
    assert {"cpu", "cores", "device"} == set(content["machine"])
    for figure in content["figures"]:
        assert {"name", "measured", "asked", "unit", "baseline", "runs"} == set(figure)
        assert figure["runs"]["min"] <= figure["measured"] <= figure["runs"]["max"]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_a_link_leads_somewhere(link: str) -> None:
    assert link.startswith("https://") or (REPOSITORY / link).exists()
