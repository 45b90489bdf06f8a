"""Print and draw how far one network computes the function of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raysweep.reports.plots.canvas import save
from raysweep.reports.tables.parts import print_line


def print_preservation(content: Mapping[str, Any], console: Console) -> None:
    """Print how far the predictions of two networks agree, and a line for each layer.

    Args:
        content: a `science.preservation.Preservation` as plain data, with the names of both models and the text.
    """
    difference = content["difference"]
    for line in (
        f"{content['other']} ({content['other_heads']} heads) beside {content['model']} ({content['heads']} heads) on "
        f"{content['data']}, {content['predictions']} predictions in {content['windows']} windows",
        f"logits: cosine {content['logit_cosine']:.6f}, KL {content['kl']:.4g} nats a token, the same first choice in "
        f"{content['agreement']:.2%}",
        f"loss: {content['loss']:.4f}, OTHER's {content['other_loss']:.4f}, difference {difference['mean']:+.4f} "
        f"({difference['low']:+.4f} to {difference['high']:+.4f}, 95%)",
    ):
        print_line(console, line)
    table = Table("after", "hidden cosine", "CKA", "attention JS, mean", "most, head", "heads in both", box=None)
    # The first entry is the embedding, which has no heads: entry n + 1 is what layer n leaves.
    for number, layer in enumerate(content["layers"]):
        numbers = (f"{layer['cosine']:.6f}", "–" if layer["cka"] is None else f"{layer['cka']:.6f}")
        table.add_row(*((f"layer {number - 1}", *numbers, *_heads(content, number - 1)) if number else
                        ("embedding", *numbers)))  # fmt: skip
    console.print(table)


def _heads(content: Mapping[str, Any], layer: int) -> tuple[str, str, str]:
    """Write the mean and the largest divergence of a layer's heads, and how many heads both networks have."""
    row = content["divergence"][layer]
    # None: a head that one of the networks lacks.
    found = [(value, head) for head, value in enumerate(row) if value is not None]
    if not found:
        return "–", "–", f"0 of {len(row)}"
    most, head = max(found)
    mean = sum(value for value, _ in found) / len(found)
    return f"{mean:.4g}", f"{most:.4g}, {layer}.{head}", f"{len(found)} of {len(row)}"


def draw_preservation(content: Mapping[str, Any], path: Path) -> None:
    """Draw the likeness of hidden states by layer, and the divergence of every head's attention, as PNG.

    Heads that one of the networks lacks are left blank.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    figure.suptitle(f"{content['other']} beside {content['model']}: KL {content['kl']:.4g} nats a token")
    lines, map_ = figure.subplots(1, 2)
    for name, style in (("cosine", "o-"), ("cka", "s--")):
        # CKA is None where it is not defined; as a float that is NaN, at which a line has a gap.
        lines.plot(np.array([layer[name] for layer in content["layers"]], dtype=float), style, label=name)
    lines.set(xlabel="layers done", ylabel="likeness of hidden states")
    lines.legend()
    image = map_.imshow(np.array(content["divergence"], dtype=float), aspect="auto", vmin=0)
    map_.set(title="Jensen-Shannon divergence of attention, nats", xlabel="head", ylabel="layer")
    for axis in (lines.xaxis, map_.xaxis, map_.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=map_)
    save(figure, path)
