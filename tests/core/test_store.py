"""The phase store: entries are whole or not there, the newest checkpoint counts, and all comes back bit for bit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout

from raysweep.core.store import Outcome, Partial, PhaseStore

KEY = "0123456789abcdef0123"


@pytest.fixture
def store(tmp_path: Path) -> PhaseStore:
    return PhaseStore(tmp_path / "not" / "yet" / "there")


def outcome(**record: Any) -> Outcome:
    return Outcome(
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
    with store.lease(KEY), pytest.raises(Timeout):
        other.lease(KEY).acquire(timeout=0.05)
    with other.lease(KEY), store.lease(KEY + "1"):
        pass


def test_the_lease_of_a_dead_process_is_free(store: PhaseStore) -> None:
    def die_with_the_lease() -> None:
        store.lease(KEY).acquire()
        os._exit(9)

    killed(die_with_the_lease)
    with store.lease(KEY).acquire(timeout=1):
        pass
