"""Write a benchmark's figures to results/reference/<benchmark>.json, with what is needed to repeat it."""

from __future__ import annotations

import datetime
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raysweep.records.environment import commit, cpu_name, usable_cores

FOLDER = Path(__file__).resolve().parent.parent / "results" / "reference"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured figure and its target."""

    name: str
    measured: float
    asked: str
    unit: str
    baseline: str
    """The baseline of the same run."""
    runs: dict[str, float]
    """min, median, max and count of the samples whose median is `measured`."""


def figure(name: str, samples: Sequence[float], *, asked: str, unit: str, baseline: str) -> Figure:
    """Return a figure whose value is the median of the samples."""
    runs = {
        "min": min(samples),
        "median": statistics.median(samples),
        "max": max(samples),
        "count": float(len(samples)),
    }
    runs = {key: float(f"{value:.5g}") for key, value in runs.items()}
    return Figure(name=name, measured=runs["median"], asked=asked, unit=unit, baseline=baseline, runs=runs)


def write(benchmark: str, figures: Sequence[Figure], device: str = "cpu") -> None:
    """Write figures, and print them beside their targets."""
    save(benchmark, figures, device)
    for one in figures:
        show(one)


def show(one: Figure) -> None:
    print(f"{one.name}: {one.measured:g} {one.unit} (asked {one.asked}; against {one.baseline})", file=sys.stderr)


def save(benchmark: str, figures: Sequence[Figure], device: str = "cpu") -> None:
    """Write figures in place of earlier ones."""
    content = {
        "command": f"python -m benchmarks.{benchmark}",
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": {"cpu": cpu_name(), "cores": usable_cores(), "device": device},
        "figures": [asdict(one) for one in figures],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{benchmark}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
