"""A disk that is full ends whatever writes with one clear error, and leaves what was there whole."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.sound import phase, propose, sound
from support.sweeps import contents

from raysweep.contracts.events import PhaseFinished
from raysweep.errors import DiskFullError
from raysweep.job.plan import Fingerprints
from raysweep.records import atomic_folders
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.reports.live.progress import Silent
from raysweep.sweep.mending import mend
from raysweep.sweep.recorder import Recorder
from raysweep.sweep.study import Study

FINGERPRINTS = Fingerprints(model="m", data="d")


def full(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def recording(folder: SweepFolder) -> Recorder:
    folder.reopen(4)
    recorder = Recorder(folder, folder.job(), Silent())
    proposal = folder.proposals()[4]
    recorder.start_trial(proposal, plan_of(folder.job(), proposal, FINGERPRINTS))
    return recorder


def tensorboard(folder: SweepFolder) -> Callable[[], Any]:
    recorder, record = recording(folder), phase(4, "measure")
    return lambda: recorder.handle(PhaseFinished(trial=4, record=record.to_dict()))


def new_run(folder: SweepFolder) -> Callable[[], Any]:
    return lambda: recording(folder)


def journal(folder: SweepFolder) -> Callable[[], Any]:
    study, record = Study(folder.job(), folder.path / "new.journal"), folder.trials()[1]
    return lambda: study.tell(record, ())


def new_journal(folder: SweepFolder) -> Callable[[], Any]:
    return lambda: Study(folder.job(), folder.path / "new.journal")


def collected(folder: SweepFolder) -> Callable[[], Any]:
    entry = folder.store / "learn-of-1"
    return lambda: atomic_folders.collect(entry, "tensors.safetensors")


def replaced_job(folder: SweepFolder) -> Callable[[], Any]:
    return lambda: folder.replace_job(folder.job())


def proposal(folder: SweepFolder) -> Callable[[], Any]:
    return lambda: propose(folder, 5)


def mended(folder: SweepFolder) -> Callable[[], Any]:
    with (folder.path / "trials.jsonl").open("ab") as stream:
        stream.write(b"\0\0\n")
    return lambda: mend(folder, folder.job(), FINGERPRINTS)


APPENDED = "raysweep.records.jsonlines.open"


@pytest.mark.parametrize(
    ("prepared", "function"),
    [
        (tensorboard, "tensorboard.summary.writer.record_writer.RecordWriter.write"),
        (new_run, "raysweep.reports.tensorboard.event_files.EventFile._write"),
        (journal, "optuna.storages.journal.JournalFileBackend.append_logs"),
        (new_journal, "optuna.storages.journal.JournalFileBackend.append_logs"),
        (collected, "pathlib.Path.write_text"),
        (replaced_job, "pathlib.Path.write_text"),
        (proposal, APPENDED),
        (mended, APPENDED),
        (mended, "os.fsync"),
    ],
)
def test_each_writer_says_so_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Callable[[SweepFolder], Callable[[], Any]], function: str
) -> None:
    folder = sound(tmp_path)
    write = prepared(folder)
    records = {name: text for name, (_, text) in contents(folder.path).items() if name.endswith((".jsonl", ".yaml"))}
    with monkeypatch.context() as patch:
        patch.setattr(function, full, raising=function != APPENDED)
        with pytest.raises(DiskFullError, match="no space is left for .*resume the sweep"):
            write()
    after = {name: text for name, (_, text) in contents(folder.path).items()}
    assert all(after[name].startswith(text) for name, text in records.items()), "what was there is there"
    assert folder.damaged().keys() <= {"trials.jsonl"}, "no line was cut"
    assert {record.trial for record in folder.phases()} == {1, 2, 3, 4}
