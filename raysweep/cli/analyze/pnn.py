"""The command that looks into a Plastic Neural Network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from raysweep.cli.common import console, json_option, print_json, say, strict


@click.command()
@click.argument("model")
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME",
    help="One analysis; may be repeated. Default: all. `raysweep list analyses` names them.",
)  # fmt: skip
@click.option("--data", help="A text file, a folder of text files, a hub name, or python-docs. Default: the export's.")
@click.option("--tokenizer", help="Hub name or folder of a tokenizer. Default: the one in MODEL.")
@click.option(
    "--compare", "compared", multiple=True, metavar="FOLDER",
    help="Another model over the same vocabulary, such as one without a gate or a stack of layers; may be repeated.",
)  # fmt: skip
@click.option("--seq-len", type=click.IntRange(min=8), help="Tokens in a sequence. Default: all that MODEL takes.")
@click.option(
    "--eval-tokens", default=16384, show_default=True, type=click.IntRange(min=8), help="Held-out tokens to measure on."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of resampling and of nulls.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="Folder for a JSON and a PNG file of each. Default: pnn-analysis, and with --json none.",
)  # fmt: skip
@json_option
def pnn(
    model: str, experiments: Sequence[str], data: str | None, tokenizer: str | None, compared: Sequence[str],
    seq_len: int | None, eval_tokens: int, seed: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Analyse a Plastic Neural Network.

    MODEL is a folder that `raysweep export` or save_pretrained wrote. Every analysis measures on the same held-out text
    with the same masks, tests against a null model, and computes its conclusion from the data.
    """
    from raysweep.errors import UsageError
    from raysweep.science.pnn.run import chosen, run_analyses
    from raysweep.science.pnn.subject import held_out_data, load_subject

    names = chosen(experiments)  # a misspelt name is an error before the model is loaded
    spec = held_out_data(model, data, tokenizer=tokenizer, seq_len=seq_len, eval_tokens=eval_tokens)
    folder = out or (None if as_json else Path("pnn-analysis"))
    # Made before the analyses, which may take minutes.
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {str(folder)!r} cannot be made: {error.strerror}.") from error
    subject = load_subject(model, spec, seed=seed, compared=compared)
    # Where analyses were named, one that does not apply to this model is an error; of all, it is only reported.
    found = run_analyses(
        subject, names, lambda line: say(line, err=True), insist=bool(experiments)
    )  # fmt: skip
    about = {"model": model, "data": spec.model_dump(), "compared": list(compared), "seed": seed}
    contents = [one.to_dict() for one in found]
    if folder is not None:
        for content in contents:
            _write(folder, {**about, **content})
    _show({**about, "findings": contents}, folder, as_json)


def _write(folder: Path, content: dict[str, Any]) -> None:
    from raysweep.reports.tables.findings import draw_finding

    path = folder / content["experiment"]
    path.with_suffix(".json").write_text(json.dumps(strict(content), indent=2) + "\n", encoding="utf-8")
    if "panels" in content:  # an analysis that is not applicable to this model has none
        draw_finding(content, path.with_suffix(".png"))


def _show(content: dict[str, Any], folder: Path | None, as_json: bool) -> None:
    from raysweep.reports.tables.findings import print_findings

    if as_json:
        print_json(content)
        return
    print_findings(content["findings"], console())
    say(f"figures and pictures: {folder}")
