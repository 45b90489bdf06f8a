"""TensorBoard runs, one per trial, from records alone; and the server that shows them.

Its default (Rust) data server keeps the last of several points at one step, so no two phases may share one: a phase
that trains no step takes one step of the axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.job.parameter import Scalar
from raysweep.job.space import Space
from raysweep.records.schema import PhaseRecord, Status
from raysweep.reports.plots.head_map import LEGEND, head_map_png
from raysweep.reports.plots.score import LEGEND as SCORE_LEGEND
from raysweep.reports.plots.score import score_png
from raysweep.reports.tensorboard.event_files import EventFile, histogram, image, scalar, text
from raysweep.reports.tensorboard.hparams import session_end, session_start
from raysweep.reports.wording import count

POINT_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "gradient_norm": "train/gradient_norm",
    "new_head_gate": "heads/new_gate",
    "new_head_multiplier": "heads/new_lr_multiplier",
}


class NoWriter:
    """Writes nothing, where nobody will look."""

    def progress(self, phase: str, cycle: int, point: Mapping[str, float]) -> None: ...
    def phase(self, record: PhaseRecord) -> None: ...
    def finish(self, status: Status, objectives: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TrialWriter:
    """One TensorBoard run of one trial, under <folder>/<trial>, written from scratch when the trial (re)starts."""

    def __init__(self, folder: Path, trial: int, values: Mapping[str, Scalar], space: Space | None) -> None:
        """Drop what an earlier attempt left, and write the trial's line of the HParams table.

        Args:
            folder: the sweep's tensorboard folder.
            values: the trial's point of the space; parameters that it lacks are shown as "n/a".
        """
        self._events = EventFile(folder / str(trial))
        self._ends: dict[tuple[str, int], int] = {}  # where each phase ended on the step axis
        self._start = 0  # where the running phase begins on the step axis
        self._trained = 0  # the last of its training steps that was written
        self._events.add(0, session_start(values, space))
        self._events.flush()

    def progress(self, phase: str, cycle: int, point: Mapping[str, float]) -> None:
        """Write a training point of the running phase; one that a restarted worker repeats is left out."""
        self._add_point(phase, cycle, point)
        self._events.flush()

    def phase(self, record: PhaseRecord) -> None:
        """Write the end of a phase, and those points of its curve that were not written live."""
        if record.arm != "main":
            self._control(record)
            return
        if (record.phase, record.cycle) in self._ends:
            return
        for point in record.curve:
            self._add_point(record.phase, record.cycle, point)
        self._write_events(record)
        ends = {record.steps, *(event["step"] for event in record.events or ())}  # of the phase and of events
        for point in record.evaluations:
            if point["step"] not in ends:
                self._events.add(self._start + int(point["step"]), scalar("eval/loss", point["loss"]))
        for looked in record.trajectory:
            self._events.add(self._start + looked["step"], *_new_head_values(looked["heads"]))
        self._start += max(record.steps, 1)
        self._trained = 0
        self._events.add(self._start, *_phase_values(record, index=len(self._ends)), *_score_values(vars(record)))
        self._events.flush()
        self._ends[(record.phase, record.cycle)] = self._start

    def _write_events(self, record: PhaseRecord) -> None:
        """Write the scores that each act of an event measured, and how the last of them left the model.

        An event before the first step stands at that step: where the phase begins the one before it ends.
        """
        events = record.events or ()
        for event in events:
            self._events.add(self._start + max(event["step"], 1), *_score_values(event))
        for step, last in {event["step"]: event for event in events}.items():
            self._events.add(self._start + max(step, 1), *_measures(last))

    def _control(self, record: PhaseRecord) -> None:
        """Write the end of a control arm's phase where the trial's own ended, or its cycle if it has no such phase."""
        cycle = [end for (_, number), end in self._ends.items() if number == record.cycle]
        at = self._ends.get((record.phase, record.cycle), max(cycle, default=self._start))
        self._events.add(
            at,
            scalar(f"controls/{record.arm}/loss", record.loss),
            scalar(f"controls/{record.arm}/perplexity", record.perplexity),
        )
        self._events.flush()

    def finish(self, status: Status, objectives: Mapping[str, float]) -> None:
        """Write how the trial ended, and close. The other metrics are those of its last phase."""
        values = [session_end(status), text("trial/status", status)]
        values += [scalar("hparam/objective", value) for value in list(objectives.values())[:1]]
        if len(objectives) > 1:
            values += [scalar(f"objective/{name}", value) for name, value in objectives.items()]
        self._events.add(self._start + self._trained, *values)
        self.close()

    def close(self) -> None:
        self._events.close()

    def _add_point(self, phase: str, cycle: int, point: Mapping[str, float]) -> None:
        step = int(point["step"])
        if (phase, cycle) in self._ends or step <= self._trained:
            return
        self._trained = step
        self._events.add(
            self._start + step, *(scalar(tag, point[key]) for key, tag in POINT_TAGS.items() if key in point)
        )


def _phase_values(record: PhaseRecord, index: int) -> Iterator[Any]:
    yield scalar("phase/index", index)
    yield text("phase", _phase_mark(record))
    yield from _measures(vars(record))
    if record.mean_steps is not None:
        yield scalar("infer/mean_steps", record.mean_steps)
    for name, value in (record.reported or {}).items():
        yield scalar(f"infer/reported/{name}", value)
    yield image("heads/map", *head_map_png(tuple(map(tuple, record.head_map))), LEGEND)
    if record.samples:
        yield scalar("eval/repetition", sum(sample["repetition"] for sample in record.samples) / len(record.samples))
        yield text("samples", _samples_markdown(record.samples))


def _measures(measured: Mapping[str, Any]) -> Iterator[Any]:
    """Return what both a phase record and an event inside one hold."""
    yield scalar("eval/loss", measured["loss"])
    yield scalar("eval/perplexity", measured["perplexity"])
    yield scalar("heads/active", measured["active_heads"])
    yield scalar("model/params", measured["params"])
    yield scalar("model/flops_per_token", measured["flops_per_token"])


def _new_head_values(heads: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Return where each new head stands at one point of its trajectory."""
    for head in heads:
        layer, index = head["slot"]
        for name, value in head.items():
            if name != "slot" and value is not None:  # at its birth a head has no update yet
                yield scalar(f"heads/new/{layer}.{index}/{name}", value)


def _score_values(measured: Mapping[str, Any]) -> Iterator[Any]:
    """Return every score of every head, and how far scores agree with the heads' contributions, of what measured them.

    Args:
        measured: a phase record, or an event inside one.
    """
    for name, rows in (measured.get("statistics") or {}).items():
        scores = np.array(rows, dtype=float)
        present = scores[np.isfinite(scores)]
        if present.size:  # else no head is left
            yield image(f"scores/{name}", *score_png(name, scores), SCORE_LEGEND)
            yield histogram(f"scores/{name}/distribution", present)
    for name, agreement in (measured.get("agreement") or {}).items():
        for kind, value in agreement.items():
            if value is not None:  # a constant score agrees with nothing
                yield scalar(f"agreement/{name}/{kind}", value)


def _phase_mark(record: PhaseRecord) -> str:
    """Say in one line what a phase did."""
    name = f"{record.phase} cycle {record.cycle}" if record.cycle else record.phase
    if record.decision is not None:
        verb = "removed" if record.phase == "prune" else "grew"
        did = f"{record.decision['strategy']} {verb} {count(len(record.decision['heads']), 'head')}"
    elif record.steps:
        did = f"trained {count(record.steps, 'step')}"
    elif record.mean_steps is not None:
        did = f"tokens left after {record.mean_steps:.2f} steps on average"
    else:
        did = f"measured {count(record.active_heads, 'head')}"
    return f"{name}: {did}" + (" (outcome shared with another trial)" if record.reused else "")


def _samples_markdown(samples: Iterable[Mapping[str, Any]]) -> str:
    """Show each sample as code blocks, so that nothing in it is read as markup."""
    parts = []
    for number, sample in enumerate(samples, 1):
        parts.append(f"**{number}** · repetition {sample['repetition']:.2f} · prompt:\n\n{_indented(sample['prompt'])}")
        parts.append(f"continued:\n\n{_indented(sample['text'])}")
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
