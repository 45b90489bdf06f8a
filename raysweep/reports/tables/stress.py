"""Print and draw what stress protocols measured of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raysweep.reports.plots.canvas import save
from raysweep.reports.tables.parts import print_line

NOTHING = "–"
RANKED_FOR = {"none": "(as it is)", "a": "pruned for A", "b": "pruned for B", "both": "by the sum of ranks"}


def print_stress(content: Mapping[str, Any], console: Console) -> None:
    """Print what was measured, a table for each protocol.

    Args:
        content: a `science.stress.run.Stress` as plain data, with the model's name.
    """
    print_line(console, f"{content['model']}, {content['heads']} heads   A: {content['a']}   B: {content['b']}")
    # A protocol that was not asked for, or was interrupted before it had a result, has no entry.
    if content["alternation"]:
        console.print(_alternation(content["alternation"]))
    if content["damage"]:
        question = content["question"]
        print_line(
            console,
            f"\ndamage on A, {question['strategy']}, {question['level']:.0%} of the heads, then "
            f"{question['steps']} steps",
        )
        console.print(_damage(content["damage"]))
    if content["conflict"]:
        for line in ("", *_conflict_lines(content["conflict"])):
            print_line(console, line)
        console.print(_conflict(content["conflict"]["pruned"]))


def _alternation(turns: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("turn", "trained", "loss A", "loss B", "forgotten of the other", "learned again", box=None)
    for turn in turns:
        if turn["error"]:  # training diverged: there is no loss to show
            table.add_row(str(turn["turn"]), turn["trained"].upper(), turn["error"])
            continue
        table.add_row(
            str(turn["turn"]), (turn["trained"] or NOTHING).upper(), _loss(turn["loss_a"]), _loss(turn["loss_b"]),
            _interval(turn["forgotten"]), _share(turn["relearned"]),
        )  # fmt: skip
    return table


def _damage(arms: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("removed", "heads", "loss at once", "harm", "loss after learning", "recovery", box=None)
    for arm in arms:
        end = (arm["error"],) if arm["error"] else (_loss(arm["learned"]), _share(arm["recovery"]))
        table.add_row(arm["arm"], str(len(arm["heads"])), _loss(arm["damaged"]), _interval(arm["harm"]), *end)
    return table


def _conflict_lines(conflict: Mapping[str, Any]) -> list[str]:
    both = conflict["agreement"]
    heads = ", ".join(f"{layer}.{head}" for layer, head in conflict["conflicting"])
    return [
        f"ranks for A and for B agree by {_number(both['global'])}, within layers by {_number(both['layer_centred'])}",
        f"{len(conflict['conflicting'])} of the {conflict['count']} lowest heads for A are not among the lowest for B"
        + (f": {heads}" if heads else ""),
    ]


def _conflict(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("", "heads removed", "loss A", "harm A", "loss B", "harm B", box=None)
    for row in rows:
        numbers = (row["error"],) if row["error"] else (
            _loss(row["loss_a"]), _interval(row["harm_a"]), _loss(row["loss_b"]), _interval(row["harm_b"])
        )  # fmt: skip
        table.add_row(RANKED_FOR[row["ranked_for"]], str(len(row["heads"])), *numbers)
    return table


def draw_stress(content: Mapping[str, Any], path: Path) -> None:
    """Draw what was measured as PNG, a panel for each protocol.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Any, Any], None]] = {
        "alternation": _draw_turns,
        "damage": _draw_arms,
        "conflict": _draw_conflict,
    }
    # At least one panel is drawn: an interrupted run without any result still writes the picture it was asked for.
    drawn = [name for name in panels if content[name]]
    figure = Figure(figsize=(5.5 * max(1, len(drawn)), 4.5), dpi=120, layout="constrained")
    figure.suptitle(f"{content['model']}   A: {content['a']}   B: {content['b']}")
    for axes, name in zip(figure.subplots(1, max(1, len(drawn)), squeeze=False)[0], drawn, strict=False):
        panels[name](axes, content[name])
        axes.set(title=name, ylabel="held-out loss, nats")
        axes.legend()
    save(figure, path)


def _draw_turns(axes: Any, turns: Sequence[Mapping[str, Any]]) -> None:
    for task in "ab":
        axes.plot(_numbers(turns, f"loss_{task}"), "o-", label=task.upper())
    axes.set_xticks(range(len(turns)), [(turn["trained"] or NOTHING).upper() for turn in turns])
    axes.set_xlabel("trained in this turn")


def _draw_arms(axes: Any, arms: Sequence[Mapping[str, Any]]) -> None:
    for name, label in (("damaged", "at once"), ("learned", "after learning")):
        axes.plot(_numbers(arms, name), "o", label=label)
    axes.set_xticks(range(len(arms)), [arm["arm"] for arm in arms], rotation=30)


def _draw_conflict(axes: Any, conflict: Mapping[str, Any]) -> None:
    rows = conflict["pruned"]
    for task in "ab":
        axes.plot(_numbers(rows, f"loss_{task}"), "o", label=task.upper())
    axes.set_xticks(range(len(rows)), [RANKED_FOR[row["ranked_for"]] for row in rows], rotation=15)


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    # None, of an arm that failed, becomes NaN: matplotlib leaves that point out.
    return np.array([row[name] for row in rows], dtype=float)


def _loss(loss: float | None) -> str:
    return NOTHING if loss is None else f"{loss:.4f}"


def _interval(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return NOTHING
    return f"{interval['mean']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"


def _share(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.0%}"


def _number(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.2f}"
