"""The command that measures a model under stress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysweep.cli.common import NewFile, json_option, report_drawn, say
from raysweep.science.stress.protocols import PROTOCOLS  # names alone: the protocols load torch, their list does not

if TYPE_CHECKING:
    from raysweep.science.stress.subject import StressSubject


@click.command()
@click.argument("model")
@click.option(
    "--data", required=True, metavar="A", help="Text A: a file, a folder of text files, a hub name, or python-docs."
)
@click.option("--other", required=True, metavar="B", help="Text B: as --data.")
@click.option(
    "--protocol", "protocols", multiple=True, type=click.Choice(PROTOCOLS),
    help="Training on A and B in turns, targeted damage, or pruning for either text; may be repeated. Default: all.",
)  # fmt: skip
@click.option("--steps", default=100, show_default=True, type=click.IntRange(min=1), help="Training steps of a round.")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(min=2), help="Rounds, on A, B, A, B, ...")
@click.option(
    "--level", default=0.3, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the heads to remove.",
)  # fmt: skip
@click.option("--strategy", default="taylor", show_default=True, help="What ranks heads; `raysweep list prune`.")
@click.option(
    "--set", "options", multiple=True, metavar="KEY=VALUE", help="An option of the strategy; may be repeated."
)
@click.option("--draws", default=3, show_default=True, type=click.IntRange(min=3), help="Draws of heads at random.")
@click.option(
    "--baseline", default=0, show_default=True, type=click.IntRange(min=0),
    help="Training steps on both texts, mixed, before the protocols; a from-scratch size needs them.",
)  # fmt: skip
@click.option("--lr", default=5e-4, show_default=True, type=click.FloatRange(0, min_open=True), help="Learning rate.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1), help="Windows in a step.")
@click.option("--seq-len", default=128, show_default=True, type=click.IntRange(min=8), help="Tokens in a window.")
@click.option(
    "--eval-tokens", default=8192, show_default=True, type=click.IntRange(min=16),
    help="Held-out tokens of each text to measure on.",
)  # fmt: skip
@click.option(
    "--probe-windows", default=8, show_default=True, type=click.IntRange(min=1),
    help="Training windows of a text that heads are ranked on.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of all that is random.")
@click.option(
    "--out", type=NewFile(), metavar="PNG",
    help="Where to draw. Default: stress.png, and with --json nowhere.",
)  # fmt: skip
@json_option
def stress(
    model: str, data: str, other: str, protocols: Sequence[str], steps: int, rounds: int, level: float, strategy: str,
    options: Sequence[str], draws: int, baseline: int, lr: float, batch_size: int, seq_len: int, eval_tokens: int,
    probe_windows: int, seed: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Put MODEL under stress with two texts.

    MODEL is a hub name, a folder, an export, or a from-scratch size. It is trained on A and B by turns; it loses the
    heads that matter most for A, others at random, or those that matter least, and learns on; and heads are ranked and
    pruned for A, for B and for both. Every arm starts from the same network.
    """
    from raysweep.errors import SpecError
    from raysweep.job.jobfile import parse_settings
    from raysweep.job.spec import DataSpec
    from raysweep.science.dynamic_heads import here
    from raysweep.science.stress.load import load_subject
    from raysweep.science.stress.subject import StressOptions

    values, faults = parse_settings(options)
    if faults:
        raise SpecError(faults)
    # load_subject checks whether the strategy exists and takes these options, before it loads anything.
    question = StressOptions(
        steps=steps, rounds=rounds, level=level, strategy=strategy, options=values, draws=draws, lr=lr,
        batch_size=batch_size, baseline=baseline, seed=seed,
    )  # fmt: skip
    # Both texts are cut alike: their losses stand side by side.
    a, b = (
        DataSpec(name=name, seq_len=seq_len, eval_tokens=eval_tokens, probe_windows=probe_windows)
        for name in (data, other)
    )
    about = {"model": model, "seq_len": seq_len, "eval_tokens": eval_tokens, "probe_windows": probe_windows}
    _measure(load_subject(model, a, b, question, here()), protocols or PROTOCOLS, about, out, as_json)


def _measure(
    subject: StressSubject, protocols: Sequence[str], about: Mapping[str, Any], out: Path | None, as_json: bool
) -> None:
    """Carry out the protocols, and report what was measured, even where that was interrupted."""
    from raysweep.reports.tables.stress import draw_stress, print_stress
    from raysweep.science.stress.run import run, stress_of, work_of

    found = stress_of(subject, protocols)
    work = work_of(subject, found.unfinished)
    say(
        f"{work.steps:,} training steps and {work.evaluations} evaluations: about {work.seconds:.0f} s", err=True
    )  # fmt: skip
    try:
        run(subject, found, lambda line: say(line, err=True))
    except KeyboardInterrupt:
        rest = " ".join(f"--protocol {name}" for name in found.unfinished)
        say(f"to go on with what is not finished, give the same command with {rest}", err=True)
        raise
    finally:
        # Protocols take minutes each: those that are finished are not lost with the one that was interrupted.
        content = {**about, **found.to_dict()}
        report_drawn(content, out, as_json, default="stress.png", draw=draw_stress, show=print_stress)
