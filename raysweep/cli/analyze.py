"""Commands that look into a model: analyze heads here, the others in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from raysweep.cli import analyze_pnn, dynamic, efficiency, preservation, stress
from raysweep.cli.common import console, json_option, print_json


class _Slots(click.ParamType[Any]):
    """Heads as LAYER.HEAD, with commas between."""

    name = "slots"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[tuple[int, int]]:
        if not isinstance(value, str):
            return value
        slots = []
        for part in value.split(","):
            layer, dot, head = part.strip().partition(".")
            if not (dot and layer.isdecimal() and head.isdecimal()):
                self.fail(f"{part.strip()!r} is no head; write LAYER.HEAD, such as 0.3,5.1.", param, ctx)
            slots.append((int(layer), int(head)))
        return slots


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
@click.option("--mask", type=_Slots(), metavar="0.3,5.1", help="Silence these heads, as layer.head.")
@click.option("--contribution", is_flag=True, help="Measure the loss without each head: one forward pass a head.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG",
    help="Where to draw the scores. Default: heads.png, and with --json nowhere.",
)  # fmt: skip
@json_option
def heads(
    model: str,
    data: Path,
    seq_len: int,
    windows: int,
    mask: list[tuple[int, int]] | None,
    contribution: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score every attention head of MODEL on a text.

    MODEL is a hub name or a folder with weights. Printed are its loss and perplexity on the first windows of the
    text, and what each strategy's score says of its heads.
    """
    from raysweep.experiments.heads import analyze_heads
    from raysweep.reports.heat_map import save_heat_maps
    from raysweep.reports.tables import print_heads

    found = analyze_heads(
        model, data, seq_len=seq_len, windows=windows, masked=mask or [], contribution=contribution
    )  # fmt: skip
    content = {"model": model, "data": str(data), **found.to_dict()}
    path = out or (None if as_json else Path("heads.png"))
    if path is not None:
        title = f"{model}, {windows} windows of {seq_len}: loss {found.loss:.4f}"
        save_heat_maps(path, content["scores"], found.masked, title)
    if as_json:
        print_json(content)
    else:
        print_heads(content, console())
        click.echo(f"heat maps: {path}")


analyze.add_command(dynamic.dynamic)
analyze.add_command(analyze_pnn.pnn)
analyze.add_command(efficiency.efficiency)
analyze.add_command(preservation.preservation)
analyze.add_command(stress.stress)
