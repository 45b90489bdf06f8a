"""The command that measures head gates which depend on the token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from raysweep.cli.common import console, json_option, print_json


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="A text file, a folder of text files, a hub name, or python-docs.")
@click.option(
    "--penalty", "penalties", multiple=True, type=click.FloatRange(min=0), default=(0.1, 0.3, 1.0, 3.0),
    show_default=True, help="Cost of all heads being open, in nats; a point of the curve each. May be repeated.",
)  # fmt: skip
@click.option("--steps", default=100, show_default=True, type=click.IntRange(min=1), help="Steps that routers train.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1), help="Windows in a step.")
@click.option("--seq-len", default=128, show_default=True, type=click.IntRange(min=8), help="Tokens in a window.")
@click.option(
    "--eval-tokens", default=8192, show_default=True, type=click.IntRange(min=8), help="Held-out tokens to measure on."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the order of windows.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the curve to this PNG file.")
@json_option
def dynamic(
    model: str, data: str, penalties: Sequence[float], steps: int, batch_size: int, seq_len: int, eval_tokens: int,
    seed: int, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure heads that open and close with each token.

    MODEL is a hub name, a folder, or an export. A small router is trained in each layer, the model itself is frozen.
    Each point is compared with static Taylor pruning at no more FLOPs.
    """
    from raysweep.errors import UsageError
    from raysweep.job.spec import DataSpec
    from raysweep.reports.plots.curve import draw_curve
    from raysweep.reports.tables.dynamic import print_curve
    from raysweep.science.dynamic_heads import RouterOptions, dynamic_heads, here

    # Checked before the routers are trained, which takes minutes.
    if plot is not None and not plot.resolve().parent.is_dir():
        raise UsageError(f"--plot {str(plot)!r}: its folder does not exist. Make it first.")
    # Held-out tokens are cut into windows, of which there must be one.
    if eval_tokens < seq_len:
        raise UsageError(f"--eval-tokens {eval_tokens} is less than one window of --seq-len {seq_len}.")
    question = RouterOptions(penalties=tuple(penalties), steps=steps, batch_size=batch_size, seed=seed)
    spec = DataSpec(name=data, seq_len=seq_len, eval_tokens=eval_tokens)
    content = dynamic_heads(model, spec, question, here()).to_dict()
    if plot is not None:
        draw_curve(content, plot)
    if as_json:
        print_json(content)
    else:
        print_curve(content, console())
