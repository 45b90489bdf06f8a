"""Write the model card of an export: what the model is, how it was made, and how to load it. It reads records only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raysweep.contracts import Facts, Task
from raysweep.job import registry
from raysweep.job.plan import TrialPlan
from raysweep.records.schema import PhaseRecord
from raysweep.trial.exports.manifest import Manifest
from raysweep.trial.exports.usage import usage

HEADER = """---
library_name: transformers
tags: [raysweep, attention-heads, {form}]
---
"""
PREDICTED_AT = {
    "windows": "token (windows of {seq_len})",
    "sentences": "token (sentences of {seq_len})",
    "images": "position (patches and the class token)",
}
"""The unit that FLOPs are counted for, by the kind of data that a task reads."""


def card(plan: TrialPlan, records: Sequence[PhaseRecord], manifest: Manifest, facts: Facts) -> str:
    """Return the text of README.md.

    Args:
        records: the phases of the trial, in order.
        facts: facts about the data that it learned from.
    """
    last, task = records[-1], registry.load("tasks", manifest.task)
    # The map has an entry for every slot, absent ones too.
    slots = sum(map(len, last.head_map))
    sections = [
        HEADER.format(form=manifest.format)
        + f"# {manifest.base_model}, {last.active_heads} of {slots} attention heads ({manifest.format})",
        f"Trial {plan.trial} of sweep `{manifest.sweep}`, made by raysweep {manifest.versions['raysweep']}.",
        "\n".join(_facts(plan, last, manifest, task)),
        "## Load\n\n" + usage(task, facts, manifest),
        "## Phases\n\nHeld-out loss in nats per label; FLOPs of a forward pass per token or position, without absent "
        "heads.\n\n" + "\n".join(_phases(records)),
        "## Heads removed and grown\n\n" + ("\n".join(_decisions(records)) or "None."),
        "## Head map\n\nOne line a layer: `.` absent, `0` original, a number the cycle in which the head was grown."
        "\n\n```\n" + "\n".join(_map(last)) + "\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _facts(plan: TrialPlan, last: PhaseRecord, manifest: Manifest, task: type[Task]) -> Iterator[str]:
    """Yield the rows of the first table: model, seed, size, data, versions, and the values searched over."""
    # Markdown has no table without a header; an empty one is shown as none.
    yield "| | |\n|---|---|"
    yield f"| base model | `{manifest.base_model}` ({manifest.family}, {manifest.task}) |"
    yield f"| plan key | `{manifest.plan_key}` |"
    yield f"| seed | {plan.seed} |"
    yield f"| cycles | {manifest.cycles} |"
    yield f"| parameters without absent heads | {last.params:,} |"
    per = PREDICTED_AT[task.reads].format(seq_len=plan.data["seq_len"])
    yield f"| forward FLOPs per {per} | {last.flops_per_token:,.0f} |"
    yield f"| data | `{plan.data['name']}`, sha256 `{last.data_sha256}` |"
    yield "| versions | " + ", ".join(f"{name} {number}" for name, number in manifest.versions.items()) + " |"
    for name, value in plan.values.items():
        yield f"| `{name}` | {value} |"


def _phases(records: Sequence[PhaseRecord]) -> Iterator[str]:
    """Yield the rows of the table of phases."""
    metrics = list(_quality(records[-1]))
    yield f"| phase | cycle | steps | loss | {' | '.join(metrics)} | heads | parameters | FLOPs |"
    # Seven columns that every task has, and one a metric.
    yield "|---" * (7 + len(metrics)) + "|"
    for each in records:
        yield (
            f"| {each.phase} | {each.cycle} | {each.steps} | {each.loss:.4f} | {' | '.join(_quality(each).values())} | "
            f"{each.active_heads} | {each.params:,} | {each.flops_per_token:,.0f} |"
        )


def _quality(record: PhaseRecord) -> dict[str, str]:
    """Return the quality measures of a phase beside its loss: accuracy and metrics of a classifier, else perplexity."""
    if not record.metrics:
        return {"perplexity": f"{record.perplexity:.4g}"}
    return {name: f"{value:.4f}" for name, value in {"accuracy": record.accuracy, **record.metrics}.items()}


def _decisions(records: Sequence[PhaseRecord]) -> Iterator[str]:
    """Yield a line for each prune and grow: cycle, strategy, options and heads."""
    for each in records:
        if each.decision is not None:
            done = "removed" if each.phase == "prune" else "grew"
            options = ", ".join(f"{name}: {value}" for name, value in each.decision["options"].items())
            # A decision lists heads in the order in which they were chosen; by layer they are easier to find.
            heads = ", ".join(f"{layer}.{head}" for layer, head in sorted(map(tuple, each.decision["heads"])))
            by = each.decision["strategy"] + (f" ({options})" if options else "")
            yield f"- cycle {each.cycle}: {by} {done} {len(each.decision['heads'])} (layer.head): {heads or 'none'}"


def _map(last: PhaseRecord) -> Iterator[str]:
    """Yield the head map, one line a layer."""
    for layer, row in enumerate(last.head_map):
        yield f"{layer:3}  " + " ".join("." if head < 0 else str(head) for head in row)
