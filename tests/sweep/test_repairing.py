"""What a checkpoint has lost is run again, with the same outcome, bit for bit; what differs is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.inline import InlineDriver, new_sweep, search_job
from support.jobs import checked_job, quick_job
from support.sound import rewrite

from raysweep import api
from raysweep.cli import main
from raysweep.errors import ArchiveError
from raysweep.job.plan import Fingerprints
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord
from raysweep.sweep.invariants import examine


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """Two trials that have ended."""
    folder = new_sweep(tmp_path_factory.mktemp("finished"), search_job(trials=2))
    InlineDriver()(folder, folder.job(), Fingerprints(**folder.environment()["fingerprints"]))
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def sweep(finished: SweepFolder, results: Path) -> SweepFolder:
    return SweepFolder(shutil.copytree(finished.path, results / "s"))


def entry(folder: SweepFolder, trial: int, phase: str) -> Path:
    return folder.store / record(folder, trial, phase).key


def record(folder: SweepFolder, trial: int, phase: str) -> PhaseRecord:
    return next(r for r in folder.phases() if (r.trial, r.phase) == (trial, phase))


def worst(folder: SweepFolder) -> int:
    return max(folder.trials().values(), key=lambda ended: ended.objective or 0.0).trial


def faults(folder: SweepFolder) -> list[str]:
    found = examine(folder, deep=True)["invariants"]
    # No study was told: these sweeps are run without one.
    return [fault for name, some in found.items() for fault in some if "sampler" not in name]


def turned(path: Path) -> None:
    """Turn a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files(folder: Path) -> dict[str, bytes]:
    # Records of outcomes hold the seconds that their phase took.
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.mark.parametrize(
    ("phase", "damage"),
    [
        ("learn", lambda found: turned(found / "tensors.safetensors")),
        ("learn", lambda found: turned(found / "moments.safetensors")),
        ("learn", shutil.rmtree),
        ("grow", lambda found: turned(found / "slices.safetensors")),
        ("measure", lambda found: (found / "outcome.json").write_text("{}")),
        ("baseline", lambda found: (found / "manifest.json").unlink()),
    ],
    ids=["weights", "moments", "gone", "slices", "outcome", "manifest"],
)
def test_a_lost_checkpoint_of_any_trial_is_run_again(
    sweep: SweepFolder, results: Path, phase: str, damage: Callable[[Path], object]
) -> None:
    trial = worst(sweep)
    found, before = entry(sweep, trial, phase), sweep.phases()
    whole = files(found)
    damage(found)
    told: list[str] = []
    (done,) = api.repair("s", results=results, tell=told.append)
    assert (done.phase, done.key, done.differs) == (phase, found.name, [])
    assert f"{phase}: its checkpoint is lost (" in told[-1]
    assert files(found) == whole, "the same weights, bit for bit"
    assert sweep.phases() == before and faults(sweep) == []
    assert api.repair("s", results=results) == []


def test_several_lost_checkpoints_are_run_again_in_order(sweep: SweepFolder, results: Path) -> None:
    lost = [entry(sweep, trial, phase) for trial in (1, 2) for phase in ("prune", "learn")]
    whole = [files(found) for found in lost]
    for found in lost:
        shutil.rmtree(found)
    shutil.rmtree(entry(sweep, 1, "baseline"))
    done = api.repair("s", results=results)
    assert all(not each.differs for each in done) and {each.phase for each in done} == {"baseline", "prune", "learn"}
    assert [files(found) for found in lost] == whole and faults(sweep) == []


def test_an_export_runs_what_it_lacks_again_by_itself(sweep: SweepFolder, results: Path, tmp_path: Path) -> None:
    api.export("s", 1, tmp_path / "before", results=results)
    turned(entry(sweep, 1, "learn") / "tensors.safetensors")
    done = CliRunner().invoke(main, ["export", "s", "1", str(tmp_path / "after"), "--results", str(results)])
    assert done.exit_code == 0, done.stderr
    assert "note: trial 1, learn: its checkpoint is lost (" in done.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after")]
    assert weights[0] == weights[1]


def test_what_comes_out_otherwise_is_said(sweep: SweepFolder, results: Path) -> None:
    rewrite(sweep, "phases.jsonl", lambda lines: lines[-1].update(loss=1.0))
    shutil.rmtree(sweep.store / sweep.phases()[-1].key)
    done = CliRunner().invoke(main, ["repair", "s", "--results", str(results)])
    assert done.exit_code == 1 and "run again, DIFFERS in loss" in done.stdout


def test_damaged_remains_that_no_record_knows_are_set_aside(sweep: SweepFolder, results: Path) -> None:
    strange = shutil.copytree(entry(sweep, 1, "learn"), sweep.store / "strange")
    turned(strange / "tensors.safetensors")
    assert any("strange/tensors.safetensors" in fault for fault in faults(sweep))
    assert api.repair("s", results=results) == [] and faults(sweep) == []
    assert (sweep.store / "strange.damaged").is_dir()


def test_a_sweep_of_another_job_or_code_is_not_repaired(sweep: SweepFolder, results: Path) -> None:
    shutil.rmtree(entry(sweep, 1, "learn"))
    about = sweep.environment()
    sweep.replace_environment({**about, "code": {**about["code"], "trial/acts.py": "other"}})
    with pytest.raises(ArchiveError, match=r"was begun with other code. Changed: trial/acts.py"):
        api.repair("s", results=results)
    sweep.replace_environment(about)
    rewrite(sweep, "plans.jsonl", lambda lines: lines[0].update(job="other"))
    with pytest.raises(ArchiveError, match="not the job that trials 1 "):
        api.repair("s", results=results)


def test_a_phase_of_earlier_code_cannot_be_run_again(sweep: SweepFolder, results: Path) -> None:
    rewrite(sweep, "phases.jsonl", lambda lines: lines[1].update(key="earlier"))
    with pytest.raises(ArchiveError, match=r"phase prune \(earlier\) was run by other code"):
        api.repair("s", results=results)


def test_a_sweep_that_runs_is_not_repaired(sweep: SweepFolder, results: Path) -> None:
    lock = sweep.lock()
    with pytest.raises(ArchiveError, match="is being run"):
        api.repair("s", results=results)
    lock.release()


def test_nothing_to_repair_is_said(sweep: SweepFolder, results: Path) -> None:
    done = CliRunner().invoke(main, ["repair", "s", "--results", str(results)])
    assert done.exit_code == 0 and done.stdout.startswith("s: nothing is damaged or gone.\n")
    done = CliRunner().invoke(main, ["repair", "s", "--results", str(results), "--json"])
    assert json.loads(done.stdout) == []


@pytest.mark.slow
def test_two_workers_run_it_again_as_two(results: Path) -> None:
    """Their sums have another order than those of one."""
    job = checked_job(quick_job(scale__workers=2, cycle__cycles=1), "quick.yaml")
    folder = new_sweep(results, job)
    api.resume("s", results=results)  # on Ray
    found = entry(folder, 1, "learn")
    whole = files(found)
    turned(found / "tensors.safetensors")
    (done,) = api.repair("s", results=results)
    assert done.differs == [] and files(found) == whole
