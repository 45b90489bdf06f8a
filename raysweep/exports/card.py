"""The model card of an export: what the model is, how it came to be, and how to load it; from records only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raysweep.exports.manifest import Manifest
from raysweep.plan import TrialPlan
from raysweep.records import PhaseRecord

HEADER = """---
library_name: transformers
tags: [raysweep, attention-heads, {form}]
---
"""
LOAD = {
    "compact": """Absent heads are gone from every tensor, so plain transformers refuses this folder:

```python
import raysweep
from transformers import AutoTokenizer

model = raysweep.load_model(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```""",
    "dense": """A plain transformers folder: absent heads have zero weights and compute nothing.

```python
from transformers import {model_class}, AutoTokenizer

model = {model_class}.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```""",
}


def card(plan: TrialPlan, records: Sequence[PhaseRecord], manifest: Manifest) -> str:
    """Return the text of README.md.

    Args:
        records: the trial's phases, in order.
    """
    last = records[-1]
    slots = sum(map(len, last.head_map))
    sections = [
        HEADER.format(form=manifest.format)
        + f"# {manifest.base_model}, {last.active_heads} of {slots} attention heads ({manifest.format})",
        f"Trial {plan.trial} of sweep `{manifest.sweep}`, made by raysweep {manifest.versions['raysweep']}.",
        "\n".join(_facts(plan, last, manifest)),
        "## Load\n\n" + LOAD[manifest.format].format(model_class=manifest.model_class),
        "## Phases\n\nHeld-out loss in nats per label; FLOPs of a forward pass per token, absent heads left out.\n\n"
        + "\n".join(_phases(records)),
        "## Heads removed and grown\n\n" + ("\n".join(_decisions(records)) or "None."),
        "## Head map\n\nOne line a layer: `.` absent, `0` original, a number the cycle in which the head was grown."
        "\n\n```\n" + "\n".join(_map(last)) + "\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _facts(plan: TrialPlan, last: PhaseRecord, manifest: Manifest) -> Iterator[str]:
    yield "| | |\n|---|---|"
    yield f"| base model | `{manifest.base_model}` ({manifest.family}, {manifest.task}) |"
    yield f"| plan key | `{manifest.plan_key}` |"
    yield f"| seed | {plan.seed} |"
    yield f"| cycles | {manifest.cycles} |"
    yield f"| parameters without absent heads | {last.params:,} |"
    yield f"| forward FLOPs per token | {last.flops_per_token:,.0f} (windows of {plan.data['seq_len']}) |"
    yield f"| data | `{plan.data['name']}`, sha256 `{last.data_sha256}` |"
    yield "| versions | " + ", ".join(f"{name} {number}" for name, number in manifest.versions.items()) + " |"
    for name, value in plan.values.items():
        yield f"| `{name}` | {value} |"


def _phases(records: Sequence[PhaseRecord]) -> Iterator[str]:
    yield "| phase | cycle | steps | loss | perplexity | heads | parameters | FLOPs/token |"
    yield "|---|---|---|---|---|---|---|---|"
    for each in records:
        yield (
            f"| {each.phase} | {each.cycle} | {each.steps} | {each.loss:.4f} | {each.perplexity:.4g} | "
            f"{each.active_heads} | {each.params:,} | {each.flops_per_token:,.0f} |"
        )


def _decisions(records: Sequence[PhaseRecord]) -> Iterator[str]:
    for each in records:
        if each.decision is not None:
            done = "removed" if each.phase == "prune" else "grew"
            options = ", ".join(f"{name}: {value}" for name, value in each.decision["options"].items())
            heads = ", ".join(f"{layer}.{head}" for layer, head in sorted(map(tuple, each.decision["heads"])))
            by = each.decision["strategy"] + (f" ({options})" if options else "")
            yield f"- cycle {each.cycle}: {by} {done} {len(each.decision['heads'])} (layer.head): {heads or 'none'}"


def _map(last: PhaseRecord) -> Iterator[str]:
    for layer, row in enumerate(last.head_map):
        yield f"{layer:3}  " + " ".join("." if head < 0 else str(head) for head in row)
