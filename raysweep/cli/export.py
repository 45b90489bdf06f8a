"""The command that exports the model of a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from raysweep.cli.common import json_option, open_sweep, print_json, print_notes, results_option, say


@click.command()
@click.argument("sweep")
@click.argument("trial", type=int)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["compact", "dense"]), default="compact", show_default=True,
    help="compact: without absent heads, for raysweep.load_model. dense: for plain transformers.",
)  # fmt: skip
@results_option
@json_option
def export(sweep: str, trial: int, out: Path, form: Literal["compact", "dense"], results: Path, as_json: bool) -> None:
    """Write a trial's model as a folder.

    TRIAL is its number in the table of SWEEP. OUT is a new folder, for weights, tokenizer and a model card.
    """
    from raysweep import api

    open_sweep(results, sweep)  # before torch is imported: a misspelt name is an error at once
    manifest = api.export(sweep, trial, out, format=form, results=results, tell=lambda text: print_notes([text]))
    if as_json:
        print_json({"folder": str(out), **manifest.model_dump()})
        return
    # Metrics are floats, counts included.
    heads = f"{manifest.metrics['active_heads']:.0f} of {sum(map(len, manifest.head_map))} heads"
    # A classifier has a perplexity too, but nobody reads it.
    quality = "accuracy" if manifest.task.endswith("classification") else "perplexity"
    say(f"{out}: {form}, {heads}, {quality} {manifest.metrics[quality]:.4g}")
    # What a person would paste: transformers knows dense models, but none that lack heads.
    way = f'raysweep.load_model("{out}")' if form == "compact" else f'{manifest.model_class}.from_pretrained("{out}")'
    say(f"load:  {way} ({out / 'README.md'} says how to use it)")
