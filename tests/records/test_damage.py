"""A damaged line of records is left out and told of, and set aside by whoever owns the sweep; the others are read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.sound import damage
from support.sweeps import add_trial, finished_sweep, make_sweep

from raysweep.contracts import Report
from raysweep.errors import ArchiveError, DamagedWarning
from raysweep.records.folder import SweepFolder
from raysweep.records.lines import READERS
from raysweep.records.schema import Retry, Session

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a block of NULs": lambda line: b"\0" * len(line),
    "NULs in the middle": lambda line: line[:20] + b"\0" * 30 + line[50:],
    "cut": lambda line: line[: len(line) // 2],
    "empty": lambda line: b"",
    "no text": lambda line: line[:10] + b"\xff\xfe" + line[12:],
    "two in one": lambda line: line[:40] + line,
    "a list": lambda line: b"[" + line + b"]",
    "pairs": lambda line: b'[["trial", 2]]',
    "a number": lambda line: b"17",
    "null": lambda line: b"null",
    "an object of something else": lambda line: b'{"op_code": 4}' if b"op_code" not in line else b"{}",
    "brackets without end": lambda line: b"[" * 100_000,
}


def lines_of(folder: SweepFolder, file: str) -> list[bytes]:
    return (folder.path / file).read_bytes().splitlines()


def without(folder: SweepFolder, file: str, number: int, field: str, **instead: Any) -> None:
    def change(line: bytes) -> bytes:
        content = json.loads(line)
        del content[field]
        return json.dumps(content | instead).encode()

    damage(folder, file, number, change)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep with at least three lines in each of its files."""
    folder = finished_sweep(tmp_path_factory.mktemp("whole"))
    for trial in (1, 2, 3):
        folder.add_report(Report(trial=trial, phase="learn", cycle=1, step=10, flops=1.0, share=0.5, loss=3.0))
        folder.add_retry(Retry(trial=trial, attempt=2, phase="learn", cycle=1, reached=9, resumed_at=5, interval=5))
        folder.add_session(Session(session=f"s{trial}", host="here", pid=1, started=5.0))
        folder.add_lane({"lane": "lane-0", "group": "g", "pids": [1, 2]})
        folder.add_export(trial, "key", Path("out"))
    journal = [{"op_code": 0, "study_name": "raysweep"}]
    journal += [{"op_code": 4, "user_attrs": {"trial": trial}, "state": 1} for trial in (1, 2)]
    (folder.path / "study.journal").write_text("".join(json.dumps(line) + "\n" for line in journal))
    return folder


@pytest.fixture
def sweep(whole: SweepFolder, tmp_path: Path) -> SweepFolder:
    return SweepFolder(shutil.copytree(whole.path, tmp_path / whole.name))


def read(folder: SweepFolder, file: str) -> int:
    """Return the number of records that are read from a file."""
    readers: dict[str, Callable[[], Any]] = {
        "plans.jsonl": folder.proposals, "phases.jsonl": folder.phases, "trials.jsonl": folder.endings,
        "reports.jsonl": folder.all_reports, "retries.jsonl": folder.retries, "sessions.jsonl": folder.sessions,
        "lanes.jsonl": folder.lanes, "exports.jsonl": folder.exports, "study.journal": folder.journal,
    }  # fmt: skip
    return len(readers[file]())


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_line_costs_that_line_alone(sweep: SweepFolder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for file in READERS:
        _check_damage(sweep, file, kind)


def _check_damage(sweep: SweepFolder, file: str, kind: str) -> None:
    before, whole = read(sweep, file), (sweep.path / file).read_bytes()
    # The second trial's plan has two lines, one an attempt.
    number = 1 if file == "plans.jsonl" else 2
    damage(sweep, file, number, DAMAGES[kind])
    with pytest.warns(DamagedWarning, match=rf"{file}: line {number} \(.+\) is damaged and left out"):
        assert read(sweep, file) == before - 1
    ((found, (line,)),) = sweep.damaged().items()
    assert (found, line.number) == (file, number) and line.why
    sweep.set_aside(file, [line])
    assert read(sweep, file) == before - 1 and sweep.damaged() == {}
    (aside,) = map(json.loads, lines_of(sweep, f"{file}.damaged"))
    assert (aside["line"], aside["why"]) == (number, line.why)
    rest = whole.splitlines(keepends=True)
    del rest[number - 1]
    assert (sweep.path / file).read_bytes() == b"".join(rest), "the other lines stay byte for byte"


@pytest.mark.parametrize(
    ("file", "field", "instead"),
    [
        ("trials.jsonl", "status", {}), ("trials.jsonl", "status", {"status": "DONE"}),
        ("trials.jsonl", "phases", {"phases": 3}), ("trials.jsonl", "trial", {"trial": "2"}),
        ("trials.jsonl", "schema", {}), ("trials.jsonl", "schema", {"schema": "1"}),
        ("phases.jsonl", "head_map", {"head_map": [["x"]]}), ("phases.jsonl", "loss", {"loss": None}),
        ("phases.jsonl", "curve", {"curve": [{"loss": 3.0}]}),
        ("phases.jsonl", "evaluations", {"evaluations": [{"loss": 3.0}]}),
        ("phases.jsonl", "key", {}), ("plans.jsonl", "values", {"values": []}),
        ("plans.jsonl", "trial", {"trial": True}),
        ("lanes.jsonl", "pids", {}), ("exports.jsonl", "key", {"key": 7}), ("reports.jsonl", "share", {}),
        ("study.journal", "op_code", {}),
    ],
)  # fmt: skip
def test_a_line_without_a_field_or_with_a_wrong_one_is_damaged(
    sweep: SweepFolder, file: str, field: str, instead: dict[str, Any]
) -> None:
    number = 1 if file == "plans.jsonl" else 2
    without(sweep, file, number, field, **instead)
    with pytest.warns(DamagedWarning, match=f"line {number} .*{field}"):
        read(sweep, file)


def test_what_a_later_raysweep_adds_is_no_damage(sweep: SweepFolder) -> None:
    for file in READERS:
        damage(sweep, file, 1, lambda line: json.dumps(json.loads(line) | {"invented": 1}).encode())
        assert read(sweep, file)
    assert sweep.damaged() == {}


def test_half_a_line_at_the_end_is_set_aside_but_no_look_warns_of_it(sweep: SweepFolder) -> None:
    """A driver may be writing it right now."""
    whole = (sweep.path / "trials.jsonl").read_bytes()
    (sweep.path / "trials.jsonl").write_bytes(whole[:-30])
    assert len(sweep.endings()) == 2
    ((file, (line,)),) = sweep.damaged().items()
    assert (file, line.number, line.why) == ("trials.jsonl", 3, "it is cut off")
    sweep.set_aside(file, [line])
    assert whole.startswith((sweep.path / "trials.jsonl").read_bytes()) and sweep.damaged() == {}
    (aside,) = map(json.loads, lines_of(sweep, "trials.jsonl.damaged"))
    assert aside["content"].encode() == whole.splitlines()[2][: -30 + 1]


def test_an_end_of_nuls_is_told_of(sweep: SweepFolder) -> None:
    """As a crashed machine leaves it: the file is as long as it was, its last block was never written."""
    whole = (sweep.path / "trials.jsonl").read_bytes()
    (sweep.path / "trials.jsonl").write_bytes(whole[:-300] + b"\0" * 300)
    with pytest.warns(DamagedWarning, match=r"line 3 \(it holds control characters\) is damaged"):
        assert len(sweep.endings()) == 2


def test_many_damaged_lines_are_one_warning(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    for trial in range(1, 10):
        add_trial(folder, trial, perplexities={"baseline": 40.0})
    for number in range(2, 10):
        damage(folder, "trials.jsonl", number, lambda line: b"")
    with pytest.warns(DamagedWarning, match=r"lines 2 .* and 3 more are damaged and left out") as warned:
        assert list(folder.trials()) == [1]
    assert len(warned) == 1 and "'raysweep resume' runs again what was lost" in str(warned[0].message)


def test_a_follower_passes_damaged_lines_over(sweep: SweepFolder) -> None:
    damage(sweep, "phases.jsonl", 2, DAMAGES["cut"])
    found, end = sweep.phases_since(0)
    assert len(found) == len(lines_of(sweep, "phases.jsonl")) - 1
    assert end == (sweep.path / "phases.jsonl").stat().st_size


@pytest.mark.parametrize("content", [b"\0" * 50, b"[]", b'{"sharing": ', b"\xff"])
def test_a_damaged_environment_is_one_clear_error(sweep: SweepFolder, content: bytes) -> None:
    (sweep.path / "env.json").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"env.json cannot be read: .*Put it back from a copy"):
        sweep.environment()
