"""Everything that can be named in a job is listed with a line about it, and so is every sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sweeps import contents, finished_sweep, job_mapping, make_sweep

from raysweep.cli.listing import STRATEGIES, listing
from raysweep.errors import UsageError
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.shipped import shipped_files

KINDS = [*STRATEGIES, "models", "data", "jobs", "sweeps"]


def names(kind: str, results: Path) -> list[str]:
    return [entry["name"] for entry in listing(kind, results)[kind]]


def about(results: Path) -> dict[str, str]:
    return {entry["name"]: entry["about"] for entry in listing("sweeps", results)["sweeps"]}


def test_without_a_kind_every_kind_is_listed(tmp_path: Path) -> None:
    found = listing(None, tmp_path)
    assert list(found) == KINDS
    assert found["sweeps"] == []
    assert all(set(entry) == {"name", "about"} and entry["about"] for entries in found.values() for entry in entries)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_file_of_a_kind_is_listed(kind: str, tmp_path: Path) -> None:
    assert list(listing(kind, tmp_path)) == [kind]
    assert names(kind, tmp_path) == registry.available(kind)


def test_models_are_the_sizes_from_scratch_and_the_families(tmp_path: Path) -> None:
    families = [f"<any {family}>" for family in registry.available("models")]
    assert names("models", tmp_path) == [*sorted(scratch_sizes()), *families]


def test_data_are_the_embedded_corpus_and_those_of_the_hub(tmp_path: Path) -> None:
    assert names("data", tmp_path)[:2] == ["python-docs", "digits"]
    assert {"wikitext-2", "tiny_shakespeare", "c4"} <= set(names("data", tmp_path))


def test_a_line_about_a_strategy_is_the_first_of_its_file() -> None:
    first = "Fill the layers with the smallest present fraction first, until layers differ by one head at most."
    assert registry.first_line("grow", "balanced") == first


def test_shipped_jobs_are_listed_with_a_whole_sentence_of_their_first_line(tmp_path: Path) -> None:
    jobs = {entry["name"]: entry["about"] for entry in listing("jobs", tmp_path)["jobs"]}
    assert list(jobs) == list(shipped_files("jobs"))
    assert jobs["jobs/gpt2_heads.yaml"].startswith(
        "Which pruning and regrowth strategy recovers GPT-2 best on WikiText-2?"
    )
    assert all(about[0].isupper() and about[-1] in ".?" for about in jobs.values())


def test_jobs_here_come_first_and_take_the_place_of_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"quickstart": "#  my own\n", "z": "name: z\n", "folder": None}.items():
        path = tmp_path / "jobs" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if text is None else path.write_text(text)
    jobs = listing("jobs", tmp_path)["jobs"]
    assert [tuple(entry.values()) for entry in jobs[:3]] == [
        ("jobs/folder.yaml", "cannot be read: Is a directory"),
        ("jobs/quickstart.yaml", "my own"),
        ("jobs/z.yaml", "no comment on its first line says what it is for"),
    ]
    assert {entry["name"] for entry in jobs[3:]} == set(shipped_files("jobs")) - {"jobs/quickstart.yaml"}


def test_an_unknown_kind_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no .prunes.\. Did you mean .prune.\? Known: analyses, data, exits, grow"):
        listing("prunes", tmp_path)


def test_sweeps_are_listed_oldest_first_with_how_far_they_came(tmp_path: Path) -> None:
    finished_sweep(tmp_path, "z")
    make_sweep(tmp_path, "a", job_mapping(trials=8, minimize="perplexity"))
    assert about(tmp_path) == {
        "z": "gpt2-nano on python-docs: 3 of 3 trials, best loss 3.7197",
        "a": "gpt2-nano on python-docs: 0 of 8 trials",
    }
    assert list(about(tmp_path)) == ["z", "a"]


def test_a_sweep_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    finished_sweep(tmp_path, "good")
    (make_sweep(tmp_path, "old").path / "job.yaml").write_text("name: old\nmodle: x\n")
    (make_sweep(tmp_path, "torn").path / "phases.jsonl").write_text('{"schema": 99}\n')
    found = about(tmp_path)
    assert found["good"].startswith("gpt2-nano on")
    assert found["old"].startswith("cannot be read: ")
    assert "'modle'" in found["old"]
    assert found["torn"].startswith("cannot be read: ")


def test_listing_writes_nothing(tmp_path: Path) -> None:
    finished_sweep(tmp_path)
    before = contents(tmp_path)
    listing(None, tmp_path)
    assert contents(tmp_path) == before
