"""Serve the event files of sweeps with TensorBoard."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raysweep.errors import ArchiveError
from raysweep.reports.tensorboard.event_files import EVENT_FILES
from raysweep.reports.tensorboard.hparams import merged, read_experiments, write_columns


@contextmanager
def serve_folder(sweeps: Mapping[str, Path]) -> Iterator[Path]:
    """Make a temporary folder in which TensorBoard finds exactly these sweeps.

    Args:
        sweeps: sweep name -> its tensorboard folder; runs appear as <name>/<trial>.

    Raises:
        ArchiveError: a sweep has no such folder.
    """
    for name, folder in sweeps.items():
        if not folder.is_dir():
            raise ArchiveError(f"sweep {name!r} has nothing for TensorBoard: no folder {str(folder)!r}.")
    experiments = [experiment for folder in sweeps.values() for experiment in read_experiments(folder)]
    with tempfile.TemporaryDirectory(prefix="raysweep-tensorboard-") as path:
        logdir = Path(path)
        for name, folder in sweeps.items():
            # Links, not copies: TensorBoard follows the event files as a running sweep writes them.
            (logdir / name).symlink_to(folder.resolve(), target_is_directory=True)
        # TensorBoard would take the columns of one sweep for all. Merged ones in the top folder come before them.
        if any(experiment != experiments[0] for experiment in experiments):
            write_columns(logdir, merged(experiments))
        yield logdir


def serve(logdir: Path, port: int = 6006) -> subprocess.Popen[bytes]:
    """Start TensorBoard at http://127.0.0.1:<port>, for this machine only."""
    # -P: a file of the working folder must not stand in for a module. TensorBoard keeps 10 images of a tag unless it is
    # told otherwise: of a trial with many cycles, it would drop most head maps.
    command = [
        sys.executable, "-P", "-m", "tensorboard.main",
        "--logdir", str(logdir), "--host", "127.0.0.1", "--port", str(port),
        "--samples_per_plugin", "scalars=10000,images=1000,text=1000",
    ]  # fmt: skip
    if any(logdir.glob(EVENT_FILES)):
        # Of several experiment summaries, the fast server, in Rust, takes a random one; the one in Python takes that of
        # the top folder.
        command += ["--load_fast", "false"]
    return subprocess.Popen(command)
