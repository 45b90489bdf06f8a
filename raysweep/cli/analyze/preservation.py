"""The command that compares the functions of two models."""

from __future__ import annotations

from pathlib import Path

import click

from raysweep.cli.common import NewFile, json_option, report_drawn, say


@click.command()
@click.argument("model")
@click.argument("other")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), metavar="TEXT_FILE", help="UTF-8 text to measure on."
)
@click.option("--tokenizer", help="Hub name or folder of a tokenizer. Default: the models' own, which must agree.")
@click.option("--seq-len", default=128, show_default=True, type=click.IntRange(min=4), help="Tokens in a window.")
@click.option("--windows", default=8, show_default=True, type=click.IntRange(min=2), help="Windows, from the start.")
@click.option(
    "--out", type=NewFile(), metavar="PNG",
    help="Where to draw layers and heads. Default: preservation.png, and with --json nowhere.",
)  # fmt: skip
@json_option
def preservation(
    model: str, other: str, data: Path, tokenizer: str | None, seq_len: int, windows: int, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure how far OTHER computes the function of MODEL.

    Both are a hub name, a folder with weights or an export, compact or dense, of one vocabulary and one shape. Compared
    are logits, losses, each layer's hidden states and each head's attention, on the same windows.
    """
    from raysweep.reports.tables.preservation import draw_preservation, print_preservation
    from raysweep.science.preservation import preservation as measure

    found = measure(
        model, other, data, tokenizer=tokenizer, seq_len=seq_len, windows=windows,
        say=lambda line: say(line, err=True),
    )  # fmt: skip
    # What was measured, and on what, stands beside the result: the JSON can be read without the command.
    about = {"model": model, "other": other, "data": str(data), "tokenizer": tokenizer, "seq_len": seq_len}
    content = {**about, **found.to_dict()}
    report_drawn(
        content, out, as_json, default="preservation.png", draw=draw_preservation, show=print_preservation
    )  # fmt: skip
