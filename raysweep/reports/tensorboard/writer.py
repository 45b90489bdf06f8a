"""Write a TensorBoard run for each trial, from its records alone.

TensorBoard's default data server, in Rust, keeps only the last of several points at one step. So no two phases may
share a step: a phase that trains nothing takes one step of the axis.
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
    """A writer that writes nothing, for sweeps in virtual time."""

    def progress(self, phase: str, cycle: int, point: Mapping[str, float]) -> None: ...
    def phase(self, record: PhaseRecord) -> None: ...
    def finish(self, status: Status, objectives: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TrialWriter:
    """The TensorBoard run of a trial, in <folder>/<trial>; written from scratch when the trial starts or is retried."""

    def __init__(self, folder: Path, trial: int, values: Mapping[str, Scalar], space: Space | None) -> None:
        """Remove what an earlier attempt wrote, and start the trial's row of the HParams table.

        Args:
            folder: the sweep's tensorboard folder.
            values: the trial's point of the space; parameters that it lacks are shown as "n/a".
        """
        self._events = EventFile(folder / str(trial))
        # Phases follow one another on a single step axis.
        self._ends: dict[tuple[str, int], int] = {}  # (phase, cycle) -> the step at which it ended
        self._start = 0  # the step at which the running phase began
        self._trained = 0  # the last training step of the running phase that was written
        self._events.add(0, session_start(values, space))
        self._events.flush()

    def progress(self, phase: str, cycle: int, point: Mapping[str, float]) -> None:
        """Write a training point of the running phase, unless a restarted worker only repeats it."""
        self._add_point(phase, cycle, point)
        self._events.flush()

    def phase(self, record: PhaseRecord) -> None:
        """Write the end of a phase, and the points of its curve that were not written while it ran."""
        if record.arm != "main":
            self._control(record)
            return
        # A later attempt reports the finished phases again.
        if (record.phase, record.cycle) in self._ends:
            return
        # A phase that was reused, or resumed, has a curve of which nothing or a part was written.
        for point in record.curve:
            self._add_point(record.phase, record.cycle, point)
        self._write_events(record)
        # At these steps the end of the phase, or of an event, writes eval/loss itself: a second point would replace it.
        ends = {record.steps, *(event["step"] for event in record.events or ())}
        for point in record.evaluations:
            if point["step"] not in ends:
                self._events.add(self._start + int(point["step"]), scalar("eval/loss", point["loss"]))
        # Trajectories are not written live: only the finished record holds them.
        for looked in record.trajectory:
            self._events.add(self._start + looked["step"], *_new_head_values(looked["heads"]))
        # A phase without steps takes one: see the top of this file.
        self._start += max(record.steps, 1)
        self._trained = 0
        self._events.add(self._start, *_phase_values(record, index=len(self._ends)), *_score_values(vars(record)))
        self._events.flush()
        self._ends[(record.phase, record.cycle)] = self._start

    def _write_events(self, record: PhaseRecord) -> None:
        """Write the scores that each event inside a phase measured, and the model that the last one at a step left.

        Events before the first step are written at step 1: the step before it belongs to the end of the previous phase.
        """
        events = record.events or ()
        for event in events:
            self._events.add(self._start + max(event["step"], 1), *_score_values(event))
        for step, last in {event["step"]: event for event in events}.items():
            self._events.add(self._start + max(step, 1), *_measures(last))

    def _control(self, record: PhaseRecord) -> None:
        """Write the end of a control arm's phase at the step where the trial's own phase ended, or else its cycle."""
        # The trial itself may lack a phase of that name: a continuous one has no cycles of prune and grow.
        cycle = [end for (_, number), end in self._ends.items() if number == record.cycle]
        at = self._ends.get((record.phase, record.cycle), max(cycle, default=self._start))
        self._events.add(
            at,
            scalar(f"controls/{record.arm}/loss", record.loss),
            scalar(f"controls/{record.arm}/perplexity", record.perplexity),
        )
        self._events.flush()

    def finish(self, status: Status, objectives: Mapping[str, float]) -> None:
        """Write how the trial ended, and close. The other metrics of its row are those of its last phase."""
        values = [session_end(status), text("trial/status", status)]
        # The first objective is the column of the table; with several, all have a curve of their own.
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
        # A worker that restarted repeats the steps since its last checkpoint.
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
    """Yield what a phase record and an event inside a phase both hold."""
    yield scalar("eval/loss", measured["loss"])
    yield scalar("eval/perplexity", measured["perplexity"])
    yield scalar("heads/active", measured["active_heads"])
    yield scalar("model/params", measured["params"])
    yield scalar("model/flops_per_token", measured["flops_per_token"])


def _new_head_values(heads: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield the gate, update and other values of each new head at a point of its trajectory."""
    for head in heads:
        layer, index = head["slot"]
        for name, value in head.items():
            if name != "slot" and value is not None:  # at its birth a head has no update yet
                yield scalar(f"heads/new/{layer}.{index}/{name}", value)


def _score_values(measured: Mapping[str, Any]) -> Iterator[Any]:
    """Yield every score of every head, and how far each score agrees with the heads' contributions.

    Args:
        measured: a phase record, or an event inside one.
    """
    for name, rows in (measured.get("statistics") or {}).items():
        scores = np.array(rows, dtype=float)
        # None, of an absent head, becomes NaN.
        present = scores[np.isfinite(scores)]
        if present.size:  # a layer may lose all of its heads, and so may a model
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
    """Write each sample as code blocks, so that nothing in it is read as Markdown."""
    parts = []
    for number, sample in enumerate(samples, 1):
        parts.append(f"**{number}** · repetition {sample['repetition']:.2f} · prompt:\n\n{_indented(sample['prompt'])}")
        parts.append(f"continued:\n\n{_indented(sample['text'])}")
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    # Four blanks make a code block; an empty text still needs one line.
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
