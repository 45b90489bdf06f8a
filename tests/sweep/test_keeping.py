"""While a sweep runs, what nothing needs any more goes as `scale.keep` says, and plan knows how much stays at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.inline import InlineDriver, new_sweep, search_job

from raysweep.job.plan import Fingerprints
from raysweep.records import atomic_folders, disk
from raysweep.records.folder import SweepFolder
from raysweep.sweep.keeping import Keeper
from raysweep.trial.forecast.estimate import estimate
from raysweep.trial.forecast.preflight import check
from raysweep.trial.store.garbage import Survey


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Keeping(InlineDriver):
    """Drives a sweep, and collects as trials end; `peak` is the most that its store ever held."""

    peak = 0

    def __init__(self, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.folder, self.keeper = folder, Keeper(folder, folder.job(), clock=lambda: 0.0)
        for name in ("collect", "remove"):
            self._look_before(name, monkeypatch)

    def run(self) -> None:
        self(self.folder, self.folder.job(), Fingerprints(**self.folder.environment()["fingerprints"]))
        self.keeper.collect()

    def _look(self) -> None:
        self.peak = max(self.peak, disk.size(self.folder.store))

    def _look_before(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # The store only shrinks by these two, so it is at its largest just before one of them.
        remove: Any = getattr(atomic_folders, name)

        def look_and_remove(*arguments: Any) -> None:
            self._look()
            remove(*arguments)

        monkeypatch.setattr(atomic_folders, name, look_and_remove)

    def _end(self, *arguments: Any, **options: Any) -> None:
        super()._end(*arguments, **options)
        self._look()
        self.keeper.ended()


def kept(folder: SweepFolder, name: str) -> int:
    return len(list(folder.store.glob(f"*/{name}.safetensors")))


@pytest.mark.parametrize(
    ("keep", "weights", "moments"),
    # Three trials on one baseline. Once all have ended, a fork would train what it needs anew.
    [("results", 4, 0), ("best", 2, 0), ("all", 4, 4)],
)
def test_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, weights: int, moments: int) -> None:
    job = search_job(trials=3, scale={"keep": keep, "checkpoint_every_steps": 2})
    driver = Keeping(new_sweep(tmp_path, job), monkeypatch)
    driver.run()
    assert (kept(driver.folder, "tensors"), kept(driver.folder, "moments")) == (weights, moments)
    asked = estimate(job, check(job), ()).disk_bytes
    assert driver.peak == pytest.approx(asked, rel=0.1), "plan says how much it takes at most"


def test_looking_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_sweep(tmp_path, search_job())
    clock = Clock()
    looked: list[float] = []
    keeper = Keeper(folder, folder.job(), clock)

    def look(*arguments: Any) -> Survey:
        looked.append(clock.now)
        return Survey(kept=[], collected=[])

    monkeypatch.setattr("raysweep.sweep.keeping.survey", look)
    for _ in range(300):
        keeper.ended()
    # A look takes 2 s by this clock, of which it may take a fiftieth.
    assert 2 <= len(looked) <= 1 + clock.now / 50


def test_a_collector_leaves_what_workers_are_writing(tmp_path: Path) -> None:
    folder = new_sweep(tmp_path, search_job())
    (folder.store / ".part-x").mkdir(parents=True)
    (folder.store / "k.partial").mkdir()
    Keeper(folder, folder.job()).ended()
    assert sorted(path.name for path in folder.store.iterdir()) == [".part-x", "k.partial"]
