"""The command that compares the cost of a network with that of its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from raysweep.cli.common import command_on, console, json_option, print_json, print_next, set_option


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@set_option
@json_option
def efficiency(job: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Compare the cost of the PNN of JOB with that of its baselines.

    Prints parameters, and operations for each token with logits at the labelled positions alone; then how deep or wide
    a stack of layers with equal training FLOPs, or with as many parameters outside of the vocabulary, would be. Nothing
    is trained.
    """
    from raysweep.job.jobfile import load_job
    from raysweep.reports.tables.efficiency import print_efficiency
    from raysweep.science.pnn.efficiency import efficiency as efficiency_of

    # Counted from shapes alone: no weights are made or loaded.
    spec = load_job(job, overrides).spec
    content = efficiency_of(spec.model, spec.data.seq_len).to_dict()
    if as_json:
        print_json(content)
    else:
        print_efficiency(content, console())
        print_next(command_on("plan", job, overrides))
