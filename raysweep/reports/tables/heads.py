"""Print the scores of heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from raysweep.reports.conclusions import show_perplexity
from raysweep.reports.tables.parts import print_line
from raysweep.reports.wording import count


def print_heads(content: Mapping[str, Any], console: Console) -> None:
    """Print an analysis of heads: its loss, and for every score the mean and the three lowest and highest heads.

    Masked heads are left out of both.
    """
    masked = {tuple(slot) for slot in content["mask"]}
    mask = ", ".join(f"{layer}.{head}" for layer, head in content["mask"])
    print_line(
        console,
        f"{content['model']} on {content['data']}: loss {content['loss']:.4f}, perplexity "
        f"{show_perplexity(content['perplexity'])} over {content['predictions']} predictions"
        + (f", without {mask}" if mask else ""),
    )
    if content["absent"]:
        print_line(console, f"{count(len(content['absent']), 'head')} of the full shape absent")
    table = Table("score", "mean", "lowest heads", "highest heads")
    for name, rows in content["scores"].items():
        heads = [
            (value, f"{layer}.{head} ({value:.3g})")
            for layer, row in enumerate(rows) for head, value in enumerate(row)
            if value is not None and (layer, head) not in masked
        ]  # fmt: skip
        # By the score alone: equal scores keep the order of layers and heads, whatever their text is.
        heads.sort(key=lambda entry: entry[0])
        if heads:
            mean = sum(value for value, _ in heads) / len(heads)
            # [:-4:-1] is the last three, the highest first.
            ends = [", ".join(shown for _, shown in end) for end in (heads[:3], heads[:-4:-1])]
            table.add_row(name, f"{mean:.4g}", *ends)
    console.print(table)
