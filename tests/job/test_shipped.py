"""A name such as `jobs/quickstart.yaml` means the file here, else the shipped one; copies of those can be edited."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.errors import SpecError, UsageError
from raysweep.job import shipped
from raysweep.job.copying import copy_shipped
from raysweep.job.jobfile import load_job
from raysweep.job.shipped import KINDS, find, find_shipped, is_clone, shipped_files
from raysweep.job.yamlfile import dump_mapping, load_mapping

QUICKSTART = "jobs/quickstart.yaml"
SPACE = "search_spaces/quickstart.yaml"
HEADS = "search_spaces/heads.yaml"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def wheel(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds a job and a space, as a wheel is unpacked, beside another package with a folder jobs/."""
    site = tmp_path_factory.mktemp("site-packages")
    for kind in KINDS:
        (site / "raysweep" / kind).mkdir(parents=True)
        (site / "raysweep" / kind / "mine.yaml").write_text("# shipped\n")
        (site / kind).mkdir()
        (site / kind / "theirs.yaml").write_text("# of another package\n")
    monkeypatch.setattr(shipped, "_package", lambda: site / "raysweep")
    return site


def written(path: str, text: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def here() -> list[str]:
    return sorted(str(file) for file in Path().rglob("*") if file.is_file())


# Which file a name means.


@pytest.mark.parametrize("name", [*shipped_files("jobs"), *shipped_files("search_spaces")])
def test_what_is_shipped_is_found_by_its_name(name: str) -> None:
    assert find(name) == find_shipped(name) and find(name).is_file()


def test_a_shipped_job_is_valid_in_an_empty_folder_with_the_space_that_it_names() -> None:
    job, found = load_job(QUICKSTART), find_shipped(QUICKSTART)
    assert found is not None and job.source == str(found)
    assert job.space is not None and job.space.source == str(found.parents[1] / SPACE)


def test_the_file_here_comes_before_the_shipped_one() -> None:
    mine = {**load_mapping(find(QUICKSTART)), "name": "mine"}
    path = written(QUICKSTART, dump_mapping(mine))
    assert find(QUICKSTART) == path
    job = load_job(QUICKSTART)
    assert (job.spec.name, job.source) == ("mine", QUICKSTART)
    assert job.space is not None and job.space.source == str(find_shipped(SPACE))


def test_a_shipped_job_takes_the_shipped_space_whatever_lies_here() -> None:
    written(SPACE, "cycle.prune.level: {uniform: [0.1, 0.2]}\n")
    job = load_job(QUICKSTART)
    assert job.space is not None and job.space.source == str(find_shipped(SPACE))
    here = load_job(QUICKSTART, [f"search.space={Path(SPACE).resolve()}"])
    assert here.space is not None and here.space.paths == ("cycle.prune.level",)


@pytest.mark.parametrize("included", ["heads.yaml", HEADS])
def test_a_space_here_includes_a_shipped_one(included: str) -> None:
    written("search_spaces/mine.yaml", f"include: {included}\ncycle.cycles: {{choice: [1, 2]}}\n")
    job = load_job("jobs/gpt2_heads.yaml", ["search.space=search_spaces/mine.yaml"])
    assert job.space is not None and {"cycle.cycles", "cycle.prune.level"} <= set(job.space.paths)


@pytest.mark.parametrize(
    "name",
    [
        "quickstart.yaml", "jobs", "jobs/", "jobs/none.yaml", "jobs/../jobs/quickstart.yaml", "jobs/../setup.py",
        "../jobs/quickstart.yaml", "jobs/../../README.md", "/jobs/quickstart.yaml", "search_spaces/../pyproject.toml",
        "raysweep/errors.py", "", ".", "..",
    ],
)  # fmt: skip
def test_no_other_name_reaches_a_file_of_the_package(name: str) -> None:
    assert find_shipped(name) is None
    assert find(name) == Path(name)


def test_a_job_that_is_nowhere_is_refused_as_it_was_named() -> None:
    with pytest.raises(SpecError, match=r"^jobs/none.yaml: no such file\. .* a job of 'raysweep list jobs'"):
        load_job("jobs/none.yaml")


def test_the_tests_run_in_a_clone() -> None:
    assert is_clone()


def test_a_wheel_holds_what_it_ships_inside_the_package(wheel: Path) -> None:
    assert not is_clone()
    assert shipped_files("jobs") == {"jobs/mine.yaml": wheel / "raysweep" / "jobs" / "mine.yaml"}
    assert find_shipped("search_spaces/mine.yaml") == wheel / "raysweep" / "search_spaces" / "mine.yaml"


def test_folders_beside_an_installed_package_are_those_of_others(wheel: Path) -> None:
    assert find_shipped("jobs/theirs.yaml") is None


# Copies to edit.


@pytest.mark.parametrize("name", shipped_files("jobs"))
def test_a_copy_holds_the_job_and_all_that_it_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = copy_shipped(name, Path("a/b"))
    assert sorted(map(str, files)) == here()
    assert Path("a/b", name).read_bytes() == find(name).read_bytes()
    raw = load_job(name).spec
    monkeypatch.chdir("a/b")
    monkeypatch.setattr(shipped, "shipped_files", lambda kind: {})  # it needs nothing else
    assert load_job(name).spec == raw


def test_a_space_is_copied_with_those_that_it_includes() -> None:
    assert list(map(str, copy_shipped("search_spaces/full.yaml", Path()))) == ["search_spaces/full.yaml", HEADS]


def test_a_copy_overwrites_nothing() -> None:
    copy_shipped(QUICKSTART, Path())
    with pytest.raises(UsageError, match=f"^already here, and never overwritten: {QUICKSTART}. .* --to "):
        copy_shipped(QUICKSTART, Path())


def test_jobs_share_a_copied_space() -> None:
    copy_shipped("jobs/gpt2_heads.yaml", Path())
    assert copy_shipped("jobs/opt_125m_heads.yaml", Path()) == [Path("jobs/opt_125m_heads.yaml")]


def test_an_edited_space_is_in_the_way_and_then_nothing_is_written() -> None:
    space = written(HEADS, "cycle.prune.level: 0.5\n")
    with pytest.raises(UsageError, match=f"^already here, and never overwritten: {HEADS}"):
        copy_shipped("jobs/gpt2_full.yaml", Path())
    assert (here(), space.read_text()) == ([HEADS], "cycle.prune.level: 0.5\n")


def test_what_a_job_names_is_copied_as_shipped_whatever_lies_here() -> None:
    written(HEADS, "cycle.prune.level: 0.5\n")
    copy_shipped("jobs/gpt2_heads.yaml", Path("new"))
    found = find_shipped(HEADS)
    assert found is not None and Path("new", HEADS).read_bytes() == found.read_bytes()


@pytest.mark.parametrize("name", ["jobs/quikstart.yaml", "quickstart", "../jobs/quickstart.yaml"])
def test_a_copy_of_what_is_not_shipped_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(UsageError, match=r"^copy: no '.*Did you mean 'jobs/quickstart.yaml'\? Known: jobs/bert"):
        copy_shipped(name, Path())
    assert here() == []


def test_a_folder_that_cannot_be_made_is_refused() -> None:
    written("file", "")
    with pytest.raises(UsageError, match=r"^'file/jobs' cannot be written: Not a directory\.$"):
        copy_shipped(QUICKSTART, Path("file"))
