"""The group `raysweep analyze`, and its command `heads`; the other commands have files of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from raysweep.cli.analyze import dynamic, efficiency, preservation, stress
from raysweep.cli.analyze import pnn as analyze_pnn
from raysweep.cli.common import NewFile, json_option, report_drawn, say
from raysweep.errors import UsageError


class _Slots(click.ParamType[Any]):
    """Heads as LAYER.HEAD, separated by commas."""

    name = "heads"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[tuple[int, int]]:
        # click also converts what it has converted before.
        if not isinstance(value, str):
            return value
        slots = []
        for part in value.split(","):
            layer, dot, head = part.strip().partition(".")
            if not (dot and layer.isdecimal() and head.isdecimal()):
                raise UsageError(f"--mask {part.strip()!r} is no head; write LAYER.HEAD, such as 0.3,5.1.")
            slots.append((int(layer), int(head)))
        return slots


class _Announced:
    """Prints to stderr how long the remaining forward passes take: after the second one, then at each tenth."""

    def __init__(self) -> None:
        self._began: float | None = None

    def __call__(self, done: int, total: int) -> None:
        from raysweep.reports.wording import duration

        # The clock starts after the first pass, which is slower than the others: hence done - 1 below.
        if self._began is None:
            self._began = time.monotonic()
        # The integer part of the tenths differs from that of the pass before: a tenth was completed by this one.
        elif done == 2 or (done < total and done * 10 // total > (done - 1) * 10 // total):
            left = (time.monotonic() - self._began) / (done - 1) * (total - done)
            say(f"heads left out one by one: {done} of {total} passes, about {duration(left)} more", err=True)


@click.group()
def analyze() -> None:
    """Look into a pretrained model, outside of a sweep."""


@analyze.command()
@click.argument("model")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), metavar="TEXT_FILE", help="UTF-8 text to measure on."
)
@click.option("--seq-len", default=128, show_default=True, type=click.IntRange(min=2), help="Tokens in a window.")
@click.option("--windows", default=4, show_default=True, type=click.IntRange(min=1), help="Windows, from the start.")
@click.option("--tokenizer", help="Hub name or folder of a tokenizer. Default: the one in MODEL.")
@click.option(
    "--mask",
    type=_Slots(),
    multiple=True,
    metavar="0.3,5.1",
    help="Mask these heads, as layer.head; may be repeated.",
)
@click.option("--contribution", is_flag=True, help="Measure the loss without each head: one forward pass a head.")
@click.option(
    "--out", type=NewFile(), metavar="PNG",
    help="Where to draw the scores. Default: heads.png, and with --json nowhere.",
)  # fmt: skip
@json_option
def heads(
    model: str,
    data: Path,
    tokenizer: str | None,
    seq_len: int,
    windows: int,
    mask: Sequence[list[tuple[int, int]]],
    contribution: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score every attention head of MODEL on a text.

    MODEL is a hub name, a folder with weights or an export. Prints its loss and perplexity on the first windows of the
    text, and the score of every head by every strategy, in fp32 (docs/scores.md defines each).
    """
    from raysweep.reports.plots.heat_map import save_heat_maps
    from raysweep.reports.tables.heads import print_heads
    from raysweep.reports.wording import count
    from raysweep.science.heads import analyze_heads

    # --mask may be repeated, and each may name several heads.
    masked = [slot for part in mask for slot in part]
    found = analyze_heads(
        model, data, tokenizer=tokenizer, seq_len=seq_len, windows=windows, masked=masked, contribution=contribution,
        progress=_Announced(),
    )  # fmt: skip
    content = {"model": model, "data": str(data), **found.to_dict()}
    title = f"{model}, {count(windows, 'window')} of {seq_len}: loss {found.loss:.4f}"

    # The heads that were masked are crossed out in the picture; the JSON names them as `mask`.
    def draw(content: Mapping[str, Any], path: Path) -> None:
        save_heat_maps(path, content["scores"], found.masked, title)

    report_drawn(content, out, as_json, default="heads.png", draw=draw, show=print_heads, label="heat maps")


analyze.add_command(dynamic.dynamic)
analyze.add_command(analyze_pnn.pnn)
analyze.add_command(efficiency.efficiency)
analyze.add_command(preservation.preservation)
analyze.add_command(stress.stress)
