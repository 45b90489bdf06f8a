"""The phase store: entries are whole or not there, the newest checkpoint counts, and all comes back bit for bit."""

from __future__ import annotations

import errno
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from raysweep.errors import DiskFullError
from raysweep.records import atomic_folders as entries
from raysweep.trial.store.phase_store import Partial, PhaseOutcome, PhaseStore

KEY = "0123456789abcdef0123"


@pytest.fixture
def store(tmp_path: Path) -> PhaseStore:
    return PhaseStore(tmp_path / "not" / "yet" / "there")


def outcome(**record: Any) -> PhaseOutcome:
    return PhaseOutcome(
        trial=3, record={"phase": "prune", "loss": 1.5} | record, reference_entropy=[[0.1, None], [1 / 3, 0.0]],
        history=["a", KEY],
    )  # fmt: skip


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model/w": torch.randn(4, 6, generator=generator).T,  # not contiguous
        "model/double": torch.randn(3, generator=generator, dtype=torch.float64),
        "optimizer/w/step": torch.tensor(7.0),
        "optimizer/odd": torch.tensor([math.nan, -0.0, math.inf, 1e-45]),
    }


def assert_bitwise(found: dict[str, torch.Tensor] | None, expected: dict[str, torch.Tensor]) -> None:
    assert found is not None and set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


class Killer(dict[str, torch.Tensor]):
    """Tensors whose writing kills the process."""

    def items(self) -> Any:
        os._exit(9)


def killed(action: Any) -> None:
    """Run an action in a child process that dies on the way."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


# Entries.


def test_what_is_not_there_is_not_found(store: PhaseStore) -> None:
    assert store.find(KEY) is None
    assert store.tensors(KEY) is None
    assert store.find_partial(KEY) is None


def test_an_entry_comes_back_as_it_was_saved(store: PhaseStore) -> None:
    store.save(KEY, outcome(loss=0.1 + 0.2, head_map=[[0, -1]]), some_tensors())
    again = PhaseStore(store.folder)
    assert again.find(KEY) == outcome(loss=0.1 + 0.2, head_map=[[0, -1]])
    assert_bitwise(again.tensors(KEY), some_tensors())


def test_an_entry_without_tensors_has_none(store: PhaseStore) -> None:
    store.save(KEY, outcome(), None)
    assert store.find(KEY) is not None and store.tensors(KEY) is None


def test_an_entry_that_is_there_stays_as_it_is(store: PhaseStore) -> None:
    store.save(KEY, outcome(loss=1.0), some_tensors())
    store.save(KEY, outcome(loss=2.0), None)
    found = store.find(KEY)
    assert found is not None and found.record["loss"] == 1.0
    assert_bitwise(store.tensors(KEY), some_tensors())


def test_a_fault_between_the_writes_leaves_no_entry_and_no_rubbish(store: PhaseStore) -> None:
    with pytest.raises(TypeError):
        store.save(KEY, outcome(loss=object()), some_tensors())  # tensors are written, the record can't be
    assert store.find(KEY) is None and store.tensors(KEY) is None
    assert list(store.folder.iterdir()) == []


def test_a_kill_between_the_writes_leaves_an_entry_that_no_one_sees(store: PhaseStore) -> None:
    killed(lambda: store.save(KEY, outcome(), Killer()))
    (leftover,) = store.folder.iterdir()
    assert leftover.name.startswith(".part-")
    assert store.find(KEY) is None and store.tensors(KEY) is None
    store.save(KEY, outcome(), some_tensors())
    assert store.find(KEY) == outcome()
    assert_bitwise(store.tensors(KEY), some_tensors())


def test_entries_can_be_read_by_others(store: PhaseStore) -> None:
    store.save(KEY, outcome(), None)
    assert (store.folder / KEY).stat().st_mode & 0o777 == 0o755


def test_keys_do_not_mix(store: PhaseStore) -> None:
    store.save(KEY, outcome(loss=1.0), None)
    store.save(KEY + "1", outcome(loss=2.0), None)
    assert store.find(KEY) == outcome(loss=1.0)
    assert store.find(KEY[:-1]) is None


# Checkpoints inside a phase.


def partial(step: int) -> Partial:
    tensors = {name: tensor + step for name, tensor in some_tensors().items()}
    return Partial(
        step=step, curve=[{"step": float(step), "loss": 0.1 * step}], structure={"born": step}, tensors=tensors
    )


def assert_partial(found: Partial | None, step: int) -> None:
    assert found is not None
    assert {**asdict(found), "tensors": None} == {**asdict(partial(step)), "tensors": None}
    assert_bitwise(found.tensors, partial(step).tensors)


def steps_on_disk(store: PhaseStore) -> Iterator[str]:
    return (path.name for path in sorted((store.folder / f"{KEY}.partial").iterdir()))


def test_the_newest_checkpoint_replaces_the_ones_before(store: PhaseStore) -> None:
    for step in (5, 10, 100, 1000):
        store.save_partial(KEY, partial(step))
        assert_partial(PhaseStore(store.folder).find_partial(KEY), step)
        assert list(steps_on_disk(store)) == [f"step-{step:09d}"]
    assert store.find(KEY) is None


def test_saving_the_same_step_again_keeps_it(store: PhaseStore) -> None:
    store.save_partial(KEY, partial(5))
    store.save_partial(KEY, partial(5))
    assert_partial(store.find_partial(KEY), 5)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(store: PhaseStore) -> None:
    store.save_partial(KEY, partial(5))
    killed(lambda: store.save_partial(KEY, Partial(step=10, curve=[], structure={}, tensors=Killer())))
    assert_partial(store.find_partial(KEY), 5)
    store.save_partial(KEY, partial(15))
    assert_partial(store.find_partial(KEY), 15)


def test_a_kill_before_the_old_checkpoint_is_removed_leaves_the_newest(store: PhaseStore) -> None:
    store.save_partial(KEY, partial(5))
    aside = store.folder / "aside"
    (store.folder / f"{KEY}.partial" / "step-000000005").rename(aside)
    store.save_partial(KEY, partial(10))
    aside.rename(store.folder / f"{KEY}.partial" / "step-000000005")
    assert_partial(store.find_partial(KEY), 10)


def test_a_finished_phase_needs_no_checkpoint(store: PhaseStore) -> None:
    store.save_partial(KEY, partial(5))
    store.save(KEY, outcome(), some_tensors())
    assert store.find_partial(KEY) is None
    assert [path.name for path in store.folder.iterdir()] == [KEY]


# Leases.


def test_a_phase_is_run_by_one_at_a_time(store: PhaseStore) -> None:
    other = PhaseStore(store.folder)
    with store.lease(KEY):
        assert not other.lease(KEY).take()
    with other.lease(KEY), store.lease(KEY + "1"):
        pass


def test_the_lease_of_a_dead_process_is_free(store: PhaseStore) -> None:
    def die_with_the_lease() -> None:
        store.lease(KEY).take()
        os._exit(9)

    killed(die_with_the_lease)
    lease = store.lease(KEY)
    assert lease.take()
    lease.release()


# Damage.


def saved(store: PhaseStore, key: str = KEY, history: list[str] | None = None, **content: Any) -> Path:
    done = PhaseOutcome(trial=3, record={"phase": "learn"}, reference_entropy=None, history=history or [key])
    store.save(key, done, content.get("tensors"), content.get("slices"))
    return store.folder / key


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [flip, truncate, delete, empty]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["outcome.json", "manifest.json", "tensors.safetensors", "slices.safetensors"])
def test_a_damaged_entry_is_set_aside_and_told_of(store: PhaseStore, name: str, damage: Any) -> None:
    told: list[str] = []
    store.warn = told.append
    folder = saved(store, tensors=some_tensors(), slices=some_tensors())
    assert store.missing(KEY) is None and told == []
    damage(folder / name)
    assert store.missing(KEY) is not None
    assert not folder.exists() and (store.folder / f"{KEY}.damaged").is_dir()
    assert store.find(KEY) is None
    (text,) = told
    assert str(folder) in text and (name in text or name == "manifest.json") and "run again" in text
    saved(store, tensors=some_tensors(), slices=some_tensors())
    assert store.missing(KEY) is None
    damage(folder / name)
    assert store.missing(KEY) is not None and len(told) == 2, "damage may happen twice"


@pytest.mark.parametrize("name", ["outcome.json", "manifest.json"])
def test_a_damaged_record_is_not_found(store: PhaseStore, name: str) -> None:
    truncate(saved(store) / name)
    assert store.find(KEY) is None


def test_a_state_needs_its_slices_the_newest_tensors_and_every_record(store: PhaseStore) -> None:
    keys = ["base", "prune", "learn", "prune2"]
    for number, key in enumerate(keys, 1):
        kind = "slices" if "prune" in key else "tensors"
        saved(store, key, keys[:number], **{kind: some_tensors()})
    flip(store.folder / "base" / "tensors.safetensors")
    assert store.missing("prune2") is None, "the weights of learn took the place of those"
    assert store.missing("prune") == "base", "set aside when it is needed"
    assert store.missing("prune2") == "base", "its record is gone with it"
    saved(store, "base", keys[:1], tensors=some_tensors())
    assert store.missing("prune2") is None
    flip(store.folder / "prune" / "slices.safetensors")
    assert store.missing("prune2") == "prune" and store.missing("base") is None


def test_an_entry_that_was_collected_is_no_damage_but_cannot_be_restored(store: PhaseStore) -> None:
    told: list[str] = []
    store.warn = told.append
    folder = saved(store, tensors=some_tensors())
    entries.collect(folder, "tensors.safetensors")
    assert store.find(KEY) is not None and store.missing(KEY) is not None and told == []
    with pytest.raises(FileNotFoundError):
        store.tensors(KEY)  # not None: an older phase's tensors must not take their place
    saved(store, tensors=some_tensors())
    assert store.missing(KEY) is None
    assert_bitwise(store.tensors(KEY), some_tensors())


def test_a_kill_while_an_entry_is_collected_is_no_damage(store: PhaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(store, tensors=some_tensors())
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: os._exit(9))
    killed(lambda: entries.collect(folder, "tensors.safetensors"))
    monkeypatch.undo()
    assert store.find(KEY) is not None and store.missing(KEY) is not None
    entries.collect(folder, "tensors.safetensors")
    assert not (folder / "tensors.safetensors").exists()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["progress.json", "manifest.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_is_passed_over(store: PhaseStore, name: str, damage: Any) -> None:
    told: list[str] = []
    store.warn = told.append
    store.save_partial(KEY, partial(5))
    aside = store.folder / "aside"
    (store.folder / f"{KEY}.partial" / "step-000000005").rename(aside)
    store.save_partial(KEY, partial(10))
    aside.rename(store.folder / f"{KEY}.partial" / "step-000000005")
    damage(store.folder / f"{KEY}.partial" / "step-000000010" / name)
    assert_partial(store.find_partial(KEY), 5)
    assert len(told) == 1 and "left out" in told[0]
    damage(store.folder / f"{KEY}.partial" / "step-000000005" / name)
    assert store.find_partial(KEY) is None
    store.save_partial(KEY, partial(10))
    assert_partial(store.find_partial(KEY), 10)


# Writers.

WRITER = """
import sys, torch
from pathlib import Path
from raysweep.trial.store.phase_store import PhaseOutcome, PhaseStore
store, number = PhaseStore(Path(sys.argv[1])), int(sys.argv[2])
outcome = PhaseOutcome(trial=number, record={"phase": "learn"}, reference_entropy=None, history=["k"])
tensors = {f"w{index}": torch.full((100_000,), float(number)) for index in range(20)}
print("ready", flush=True)
sys.stdin.readline()
while True:
    store.save("k", outcome, tensors)  # first, since the other one's history names it
    store.save(f"k{number}", outcome, tensors)
    if number == 0:
        import os, tempfile
        with tempfile.TemporaryDirectory(dir=store.folder.parent) as bin:
            os.rename(store.folder / "k0", bin + "/k0")  # at once: it is never seen half removed
    else:
        break
"""


def start_writer(store: PhaseStore, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(store.folder), str(number)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(writer: subprocess.Popen[str]) -> None:
    assert writer.stdin is not None
    writer.stdin.write("\n")
    writer.stdin.flush()


def test_writers_of_one_key_leave_the_entry_of_one_of_them(store: PhaseStore) -> None:
    writers = [start_writer(store, number) for number in (1, 2, 3)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        go(writer)
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    outcome, tensors = store.find("k"), store.tensors("k")
    assert outcome is not None and tensors is not None and store.missing("k") is None
    assert {float(tensor.min()) for tensor in tensors.values()} == {float(outcome.trial)}
    assert {float(tensor.max()) for tensor in tensors.values()} == {float(outcome.trial)}
    assert sorted(path.name for path in store.folder.iterdir()) == ["k", "k1", "k2", "k3"]


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_nothing_that_is_seen(store: PhaseStore) -> None:
    told: list[str] = []
    store.warn = told.append
    seen, generator = 0, random.Random(0)
    for _ in range(4):
        writer = start_writer(store, 0)
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        go(writer)
        time.sleep(generator.uniform(0.0, 0.1))
        while not entries.leftovers(store.folder):  # the moment is any, but on a slow machine it is not too early
            time.sleep(0.0001)
        writer.kill()
        writer.wait(60)
        seen += len(entries.leftovers(store.folder))
        for key in ("k0", "k"):
            assert store.find(key) is None or store.missing(key) is None
        entries.sweep_up(store.folder)
        assert entries.leftovers(store.folder) == []
    assert told == []
    assert seen, "no kill came while something was written: this test shows nothing"


def test_what_killed_writers_left_is_swept_up_wherever_it_is(store: PhaseStore) -> None:
    inner = PhaseStore(store.folder / "trial-3")
    for place in (store, inner):
        saved(place)
        killed(lambda place=place: place.save("other", outcome(), Killer()))
        assert len(entries.leftovers(place.folder)) == 1
    entries.sweep_up(store.folder)
    for place in (store, inner):
        assert entries.leftovers(place.folder) == [] and place.find(KEY) is not None


# A full disk.


def test_a_full_disk_leaves_what_was_there(store: PhaseStore, full_disk: Any) -> None:
    before = saved(store, "before", tensors=some_tensors())
    store.save_partial(KEY, partial(5))
    with full_disk(), pytest.raises(DiskFullError, match="no space is left.*'raysweep gc'.*resume"):
        saved(store, tensors=some_tensors())
    with full_disk(), pytest.raises(DiskFullError):
        store.save_partial(KEY, partial(10))
    assert sorted(path.name for path in store.folder.iterdir()) == [f"{KEY}.partial", before.name]
    assert_partial(store.find_partial(KEY), 5)
    saved(store, tensors=some_tensors())
    assert store.missing(KEY) is None and store.missing("before") is None


@pytest.fixture(params=["tensors", "text"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let one kind of write fail half-way, as the system and as safetensors say it."""

    @contextmanager
    def full() -> Iterator[None]:
        def fail_tensors(content: Any, path: Path) -> None:
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        def fail_text(path: Path, *_: Any, **__: Any) -> None:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            if request.param == "tensors":
                patch.setattr("raysweep.trial.store.phase_store.save_file", fail_tensors)
            else:
                patch.setattr(Path, "write_text", fail_text)
            yield

    return full


def test_a_disk_that_is_really_full_leaves_what_was_there(small_disk: Path) -> None:
    store = PhaseStore(small_disk / "checkpoints")
    saved(store, "before", tensors=some_tensors())
    large = {"w": torch.zeros(1_000_000)}
    with pytest.raises(DiskFullError, match="no space is left"):
        store.save_partial(KEY, Partial(step=1, curve=[], structure={}, tensors=large))
    with pytest.raises(DiskFullError, match="no space is left"):
        saved(store, tensors=large)
    assert store.missing("before") is None and store.find(KEY) is None and store.find_partial(KEY) is None
    assert entries.leftovers(store.folder) == []
    saved(store, tensors=some_tensors())
    assert store.missing(KEY) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT RUN: no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_other_faults_of_the_disk_are_not_called_full(store: PhaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("raysweep.trial.store.phase_store.save_file", refuse)
    with pytest.raises(PermissionError):
        saved(store, tensors=some_tensors())
