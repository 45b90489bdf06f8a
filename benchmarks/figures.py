"""Write docs/figures.md: every figure of results/reference beside what was asked.

python -m benchmarks.figures
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.reference import FOLDER

PAGE = FOLDER.parents[1] / "docs" / "figures.md"
HEADER = """# Figures

Each was measured by the command above its table and is stored in `results/reference/` with the commit, the machine and
the spread over runs; this page is made from there by `python -m benchmarks.figures`. A ratio is against the baseline
named beside it, measured in the same run. The commit says which code was measured.
"""


def page(folder: Path = FOLDER) -> str:
    """Return the text of docs/figures.md."""
    return HEADER + "".join(_section(json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json")))


def _section(content: dict[str, Any]) -> str:
    machine = content["machine"]
    rows = "".join(f"| {' | '.join(_cells(one))} |\n" for one in content["figures"])
    return (
        f"\n## {content['command'].removeprefix('python -m benchmarks.')}\n\n"
        f"`{content['command']}`, commit {(content['commit'] or 'unknown')[:7]}, {content['date']}, "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}\n\n"
        "| figure | measured | smallest to largest (runs) | asked | against |\n|---|---|---|---|---|\n" + rows
    )


def _cells(one: dict[str, Any]) -> list[str]:
    runs = one["runs"]
    spread = f"{runs['min']:.4g} to {runs['max']:.4g} ({runs['count']:.0f})"
    cells = [one["name"], f"{one['measured']:.4g} {one['unit']}".rstrip(), spread, one["asked"], one["baseline"]]
    return [cell.replace("|", "\\|") for cell in cells]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
