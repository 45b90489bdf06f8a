"""Write TensorBoard's event files, and build the values in them.

Events are written with TensorBoard's own record writer: tensorboardX imports torch wherever torch is installed, and
reports load no torch.
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
BUCKETS = 30
"""As many as TensorBoard draws."""


class EventFile:
    """The event file of a folder, which replaces earlier ones; readable up to its last flush at any time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob(EVENT_FILES):
            # A TensorBoard that is open would wait for ever for a file that is gone. One that was emptied it leaves for
            # the next file, so that at the next attempt it can be removed.
            if earlier.stat().st_size:
                os.truncate(earlier, 0)
            else:
                earlier.unlink()
        # TensorBoard reads the files of a folder in the order of their names: nanoseconds put the new one last.
        name = f"{EVENT_FILES[:-1]}{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(Event(file_version="brain.Event:2"))
        # Told that a session starts, an open TensorBoard drops what it read of the earlier attempt.
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
    """Return a point of a curve."""
    return Summary.Value(tag=tag, simple_value=value)


def text(tag: str, markdown: str) -> Any:
    """Return a text, which TensorBoard renders as Markdown."""
    # Lone surrogates have no UTF-8: they become question marks, and the record keeps them.
    tensor = make_tensor_proto(markdown.encode("utf-8", "replace"))
    return Summary.Value(tag=tag, metadata=text_metadata(display_name=tag, description=""), tensor=tensor)


def image(tag: str, png: bytes, height: int, width: int, description: str) -> Any:
    """Return a picture with a description that TensorBoard shows beside it."""
    # A colour space of 3 is RGB.
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary.Value(tag=tag, metadata=image_metadata(display_name=tag, description=description), image=image)


def histogram(tag: str, values: Any) -> Any:
    """Return the distribution of finite values: left edge, right edge and count of each bucket."""
    counts, edges = np.histogram(values, BUCKETS)
    tensor = make_tensor_proto(np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1))
    return Summary.Value(tag=tag, metadata=histogram_metadata(display_name=tag, description=""), tensor=tensor)


def hparams(tag: str, **content: Any) -> Any:
    """Return an entry of the HParams plugin, whose content lies in the metadata: the tensor is empty."""
    data = plugin_data_pb2.HParamsPluginData(**content)
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
