"""TensorBoard's event files and what stands in them.

Events are written with TensorBoard's own record writer: tensorboardX imports torch wherever torch is installed.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.metadata import create_summary_metadata as histogram_metadata
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.plugins.image.metadata import create_summary_metadata as image_metadata
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

EVENT_FILES = "events.out.tfevents.*"
BUCKETS = 30  # as many as TensorBoard draws


class EventFile:
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


def scalar(tag: str, value: float) -> Any:
    return Summary.Value(tag=tag, simple_value=value)


def text(tag: str, markdown: str) -> Any:
    tensor = make_tensor_proto(markdown.encode("utf-8", "replace"))
    return Summary.Value(tag=tag, metadata=text_metadata(display_name=tag, description=""), tensor=tensor)


def image(tag: str, png: bytes, height: int, width: int, description: str) -> Any:
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary.Value(tag=tag, metadata=image_metadata(display_name=tag, description=description), image=image)


def histogram(tag: str, values: Any) -> Any:
    """Return how finite values are distributed: left edge, right edge and count of each bucket."""
    counts, edges = np.histogram(values, BUCKETS)
    tensor = make_tensor_proto(np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1))
    return Summary.Value(tag=tag, metadata=histogram_metadata(display_name=tag, description=""), tensor=tensor)


def hparams(tag: str, **content: Any) -> Any:
    data = plugin_data_pb2.HParamsPluginData(**content)
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
