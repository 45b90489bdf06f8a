"""TensorBoard event files, one run per trial, from records alone; and the server that shows them.

Events are written with TensorBoard's own record writer: tensorboardX imports torch wherever torch is installed.

Two habits of TensorBoard shape what is written. Its default (Rust) data server keeps the last of several points at one
step, so no two phases may share one: a phase that trains no step takes one step of the axis. And its HParams page knows
only the columns of one experiment summary, so that names every parameter of the space before the first trial starts.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.image.metadata import create_summary_metadata as image_metadata
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from raysweep.errors import ArchiveError
from raysweep.parameter import Parameter, Scalar
from raysweep.records import PhaseRecord, Status
from raysweep.space import Space

EVENT_FILES = "events.out.tfevents.*"
NOT_APPLICABLE = "n/a"
METRICS = (
    "hparam/objective", "eval/loss", "eval/perplexity", "eval/repetition",
    "heads/active", "model/params", "model/flops_per_token",
)  # fmt: skip
POINT_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "gradient_norm": "train/gradient_norm",
    "new_head_gate": "heads/new_gate",
    "new_head_multiplier": "heads/new_lr_multiplier",
}
CELL = 16  # pixels of one head in a head map, its border included
BORDER, ABSENT, ORIGINAL = (255, 255, 255), (205, 205, 205), (0, 114, 178)
GROWN = ((230, 159, 0), (204, 121, 167), (0, 158, 115), (213, 94, 0))  # Okabe-Ito: told apart by colour-blind readers
HEAD_MAP_LEGEND = (
    "Rows are layers, the first on top; columns are heads. Grey: absent. Blue: original. "
    "Orange, pink, green, vermilion: grown in cycle 1, 2, 3, 4, and so on in turn."
)


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
        self._events = _EventFile(folder / str(trial))
        self._done: set[tuple[str, int]] = set()
        self._ends: dict[int, int] = {}  # where each cycle ended on the step axis
        self._start = 0  # where the running phase begins on the step axis
        self._trained = 0  # the last of its training steps that was written
        self._events.add(0, _session_start(values, space))
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
        if (record.phase, record.cycle) in self._done:
            return
        for point in record.curve:
            self._add_point(record.phase, record.cycle, point)
        for point in record.evaluations:
            if point["step"] < record.steps:  # the last step's is the end of the phase
                self._events.add(self._start + int(point["step"]), _scalar("eval/loss", point["loss"]))
        for looked in record.trajectory:
            self._events.add(self._start + looked["step"], *_new_head_values(looked["heads"]))
        self._start += max(record.steps, 1)
        self._trained = 0
        self._events.add(self._start, *_phase_values(record, index=len(self._done)))
        self._events.flush()
        self._done.add((record.phase, record.cycle))
        self._ends[record.cycle] = self._start

    def _control(self, record: PhaseRecord) -> None:
        """Write the end of a control arm's phase, where the trial's own of that cycle ended."""
        at = self._ends.get(record.cycle, self._start)
        self._events.add(
            at,
            _scalar(f"controls/{record.arm}/loss", record.loss),
            _scalar(f"controls/{record.arm}/perplexity", record.perplexity),
        )
        self._events.flush()

    def finish(self, status: Status, objectives: Mapping[str, float]) -> None:
        """Write how the trial ended, and close. The other metrics are those of its last phase."""
        values = [_session_end(status), _text("trial/status", status)]
        values += [_scalar("hparam/objective", value) for value in list(objectives.values())[:1]]
        if len(objectives) > 1:
            values += [_scalar(f"objective/{name}", value) for name, value in objectives.items()]
        self._events.add(self._start + self._trained, *values)
        self.close()

    def close(self) -> None:
        self._events.close()

    def _add_point(self, phase: str, cycle: int, point: Mapping[str, float]) -> None:
        step = int(point["step"])
        if (phase, cycle) in self._done or step <= self._trained:
            return
        self._trained = step
        self._events.add(
            self._start + step, *(_scalar(tag, point[key]) for key, tag in POINT_TAGS.items() if key in point)
        )


def write_experiment(folder: Path, space: Space | None) -> None:
    """Declare every column of the HParams table, before the first trial; again when a sweep is extended."""
    _write_experiment(
        folder,
        api_pb2.Experiment(
            hparam_infos=[_column(parameter) for parameter in (space.parameters if space else ())],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in METRICS],
        ),
    )


@contextmanager
def serve_folder(sweeps: Mapping[str, Path]) -> Iterator[Path]:
    """Make, for as long as it is needed, a folder in which TensorBoard finds exactly these sweeps.

    Args:
        sweeps: tensorboard folder of each sweep, by name; runs appear as <name>/<trial>.

    Raises:
        ArchiveError: a sweep has no such folder.
    """
    for name, folder in sweeps.items():
        if not folder.is_dir():
            raise ArchiveError(f"sweep {name!r} has nothing for TensorBoard: no folder {str(folder)!r}.")
    experiments = [experiment for folder in sweeps.values() for experiment in _read_experiments(folder)]
    with tempfile.TemporaryDirectory(prefix="raysweep-tensorboard-") as path:
        logdir = Path(path)
        for name, folder in sweeps.items():
            (logdir / name).symlink_to(folder.resolve(), target_is_directory=True)
        if any(experiment != experiments[0] for experiment in experiments):
            _write_experiment(logdir, _merged(experiments))
        yield logdir


def serve(logdir: Path, port: int = 6006) -> subprocess.Popen[bytes]:
    """Start TensorBoard for this machine only, at http://127.0.0.1:<port>, keeping 1,000 images and texts of a tag."""
    command = [
        sys.executable, "-P", "-m", "tensorboard.main",
        "--logdir", str(logdir), "--host", "127.0.0.1", "--port", str(port),
        "--samples_per_plugin", "scalars=10000,images=1000,text=1000",
    ]  # fmt: skip
    if any(logdir.glob(EVENT_FILES)):
        # Of several experiment summaries the Rust server takes a random one, the Python server that of the top folder.
        command += ["--load_fast", "false"]
    return subprocess.Popen(command)


class _EventFile:
    """The event file of a folder, in place of an earlier one; can be read up to the last flush at any moment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob(EVENT_FILES):
            if earlier.stat().st_size:
                os.truncate(earlier, 0)  # an open TensorBoard waits for ever for a file that is gone
            else:
                earlier.unlink()  # it has moved on from this one
        name = f"{EVENT_FILES[:-1]}{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(Event(file_version="brain.Event:2"))
        # A TensorBoard that is open drops what it read of an earlier attempt.
        self._write(Event(session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, *values: Any) -> None:
        self._write(Event(step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


# What a phase leaves: measures, a mark, a head map, and text samples.


def _phase_values(record: PhaseRecord, index: int) -> Iterator[Any]:
    yield _scalar("phase/index", index)
    yield _text("phase", _phase_mark(record))
    yield _scalar("eval/loss", record.loss)
    yield _scalar("eval/perplexity", record.perplexity)
    yield _scalar("heads/active", record.active_heads)
    yield _scalar("model/params", record.params)
    yield _scalar("model/flops_per_token", record.flops_per_token)
    if record.mean_steps is not None:
        yield _scalar("infer/mean_steps", record.mean_steps)
    for name, value in (record.reported or {}).items():
        yield _scalar(f"infer/reported/{name}", value)
    yield _image("heads/map", *_head_map_png(tuple(map(tuple, record.head_map))), HEAD_MAP_LEGEND)
    if record.samples:
        yield _scalar("eval/repetition", sum(sample["repetition"] for sample in record.samples) / len(record.samples))
        yield _text("samples", _samples_markdown(record.samples))


def _new_head_values(heads: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Return where each new head stands at one point of its trajectory."""
    for head in heads:
        layer, index = head["slot"]
        for name, value in head.items():
            if name != "slot":
                yield _scalar(f"heads/new/{layer}.{index}/{name}", value)


def _phase_mark(record: PhaseRecord) -> str:
    """Say in one line what a phase did."""
    name = f"{record.phase} cycle {record.cycle}" if record.cycle else record.phase
    if record.decision is not None:
        verb = "removed" if record.phase == "prune" else "grew"
        did = f"{record.decision['strategy']} {verb} {_count(len(record.decision['heads']), 'head')}"
    elif record.steps:
        did = f"trained {_count(record.steps, 'step')}"
    elif record.mean_steps is not None:
        did = f"tokens left after {record.mean_steps:.2f} steps on average"
    else:
        did = f"measured {_count(record.active_heads, 'head')}"
    return f"{name}: {did}" + (" (outcome shared with another trial)" if record.reused else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@lru_cache(maxsize=64)
def _head_map_png(head_map: tuple[tuple[int, ...], ...]) -> tuple[bytes, int, int]:
    """Return the map as a picture, its height and its width; most phases leave the map as it was."""
    pixels = _head_map_pixels(head_map)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue(), pixels.shape[0], pixels.shape[1]


def _head_map_pixels(head_map: Sequence[Sequence[int]]) -> Any:
    """Return the map as RGB pixels (height, width, 3): one bordered square per head."""
    cycles = np.array(head_map)
    colours = np.array([ABSENT, ORIGINAL, *GROWN], np.uint8)
    which = np.where(cycles <= 0, cycles + 1, 2 + (cycles - 1) % len(GROWN))
    pixels = colours[which].repeat(CELL, axis=0).repeat(CELL, axis=1)
    for edge in (0, CELL - 1):
        pixels[edge::CELL] = BORDER
        pixels[:, edge::CELL] = BORDER
    return pixels


def _samples_markdown(samples: Iterable[Mapping[str, Any]]) -> str:
    """Show each sample as code blocks, so that nothing in it is read as markup."""
    parts = []
    for number, sample in enumerate(samples, 1):
        parts.append(f"**{number}** · repetition {sample['repetition']:.2f} · prompt:\n\n{_indented(sample['prompt'])}")
        parts.append(f"continued:\n\n{_indented(sample['text'])}")
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


# The HParams table: a column per parameter, a line per trial.


def _column(parameter: Parameter) -> Any:
    """Declare a parameter; one that may not apply is text, because a number cannot be "n/a"."""
    column = api_pb2.HParamInfo(name=parameter.path, type=_column_type(parameter))
    if parameter.form == "choice":
        shown: list[Scalar] = [_shown(parameter, choice) for choice in parameter.choices]
        for value in [*shown, NOT_APPLICABLE] if parameter.conditions else shown:
            _set(column.domain_discrete.values.add(), value)
    elif not parameter.conditions:
        column.domain_interval.min_value = parameter.low
        column.domain_interval.max_value = parameter.high
    return column


def _column_type(parameter: Parameter) -> Any:
    if parameter.conditions:
        return api_pb2.DATA_TYPE_STRING
    if parameter.form != "choice":
        return api_pb2.DATA_TYPE_FLOAT64
    if all(isinstance(choice, bool) for choice in parameter.choices):
        return api_pb2.DATA_TYPE_BOOL
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in parameter.choices):
        return api_pb2.DATA_TYPE_FLOAT64
    return api_pb2.DATA_TYPE_STRING


def _shown(parameter: Parameter, value: Scalar) -> Scalar:
    """Return a value as its column holds it."""
    if _column_type(parameter) != api_pb2.DATA_TYPE_STRING or isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as in the search space's YAML
    return f"{value:.6g}"


def _set(field: Any, value: Scalar) -> None:
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, int | float):
        field.number_value = value
    else:
        field.string_value = str(value)


def _session_start(values: Mapping[str, Scalar], space: Space | None) -> Any:
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for parameter in space.parameters if space else ():
        known = parameter.path in values
        _set(start.hparams[parameter.path], _shown(parameter, values[parameter.path]) if known else NOT_APPLICABLE)
    return _hparams(metadata.SESSION_START_INFO_TAG, session_start_info=start)


def _session_end(status: Status) -> Any:
    ended_well = status in ("COMPLETE", "STOPPED")
    end = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_SUCCESS if ended_well else api_pb2.STATUS_FAILURE, end_time_secs=time.time()
    )
    return _hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _write_experiment(folder: Path, experiment: Any) -> None:
    events = _EventFile(folder)
    events.add(0, _hparams(metadata.EXPERIMENT_TAG, experiment=experiment))
    events.close()


def _read_experiments(folder: Path) -> Iterator[Any]:
    for path in sorted(folder.glob(EVENT_FILES)):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield metadata.parse_experiment_plugin_data(value.metadata.plugin_data.content)


def _merged(experiments: Sequence[Any]) -> Any:
    """Return one experiment with the columns of all."""
    columns: dict[str, Any] = {}
    for column in (column for experiment in experiments for column in experiment.hparam_infos):
        _widen(columns.setdefault(column.name, column), column)
    return api_pb2.Experiment(hparam_infos=columns.values(), metric_infos=experiments[0].metric_infos)


def _widen(column: Any, other: Any) -> None:
    """Make a column hold another sweep's values of the parameter, too."""
    domain = column.WhichOneof("domain")
    if column.type != other.type or domain != other.WhichOneof("domain"):
        column.type = column.type if column.type == other.type else api_pb2.DATA_TYPE_STRING
        column.ClearField("domain_discrete")
        column.ClearField("domain_interval")
    elif domain == "domain_interval":
        column.domain_interval.min_value = min(column.domain_interval.min_value, other.domain_interval.min_value)
        column.domain_interval.max_value = max(column.domain_interval.max_value, other.domain_interval.max_value)
    elif domain == "domain_discrete":
        known = list(column.domain_discrete.values)
        column.domain_discrete.values.extend(
            value for value in list(other.domain_discrete.values) if value not in known
        )


# Protocol buffers.


def _scalar(tag: str, value: float) -> Any:
    return Summary.Value(tag=tag, simple_value=value)


def _text(tag: str, markdown: str) -> Any:
    tensor = make_tensor_proto(markdown.encode("utf-8", "replace"))
    return Summary.Value(tag=tag, metadata=text_metadata(display_name=tag, description=""), tensor=tensor)


def _image(tag: str, png: bytes, height: int, width: int, description: str) -> Any:
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary.Value(tag=tag, metadata=image_metadata(display_name=tag, description=description), image=image)


def _hparams(tag: str, **content: Any) -> Any:
    data = plugin_data_pb2.HParamsPluginData(**content)
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
