"""Shared by all tests: no network, a token cache of their own, small shapes."""

from __future__ import annotations

import gc
import os
import re
import runpy
import secrets
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: two workers of two threads each are slower
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_AUTH_MODE"] = "token"  # as Ray's own clusters have by default; Ray reads both once, when it is imported
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("RAYSWEEP_CACHE", str(Path(tempfile.gettempdir()) / f"raysweep-test-cache-{os.getuid()}"))

LONGEST_S = 10.0
DEAREST_ROOMS = ("trial", "science", "sweep")
STARTS_RAY = ("tests/cluster/", "tests/test_wheel.py")  # the Makefile runs these alone
MANY_ARCHITECTURES = ("tests/networks/", "tests/trial/", "tests/science/")
OTHER_ARCHITECTURES = re.compile(
    r"(^|-)(opt|llama(?!-gqa)|gpt_neox|pythia|mistral|qwen2|qwen3|roberta|bert-classes|pnn-blocks|pnn-layers)(?=-|\])"
)
"""Cases that are left to `make slow`; GPT-2 (fused projections), Llama with groups, BERT, ViT and PNN stay."""
SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
INTERPRETER = Path(__file__).resolve().parent / "support" / "interpreter"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("raysweep")
    group.addoption(
        "--key-salt", metavar="TEXT",
        help="give every phase another key, as a new release of transformers does: letters and digits",
    )  # fmt: skip
    group.addoption(
        "--without-torch", action="store_true",
        help="skip the files that import torch, and fail what imports it later (make quick)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Change this Python, and those that tests start, as the options ask; see support/interpreter."""
    if salt := config.getoption("--key-salt"):
        os.environ["RAYSWEEP_TESTS_KEY_SALT"] = salt
    if config.getoption("--without-torch"):
        os.environ["RAYSWEEP_TESTS_WITHOUT_TORCH"] = "1"
    if salt or config.getoption("--without-torch"):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INTERPRETER), os.environ.get("PYTHONPATH")]))
        runpy.run_path(str(INTERPRETER / "sitecustomize.py"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file that imports torch, in a run without it."""
    report = yield
    if report.failed and collector.config.getoption("--without-torch") and "TorchImported" in report.longreprtext:
        report.outcome = "skipped"
        # pytest shows a file without a line where that is None, though its annotation says int.
        report.longrepr = (str(collector.path), None, "Skipped: imports torch")  # type: ignore[assignment]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make slow` is for, and begin with the rooms whose files take longest.

    A test that runs for every architecture shows most of what it can with one of each layout; the others are slow.
    """
    for item in items:
        names = {mark.name for mark in item.iter_markers()}
        if "ray" in names and not names & {"slow", "pretrained"} and not item.nodeid.startswith(STARTS_RAY):
            raise pytest.UsageError(f"{item.nodeid}: tests that start Ray belong into {' or '.join(STARTS_RAY)}.")
        case = item.name.partition("[")[2]
        if item.nodeid.startswith(MANY_ARCHITECTURES) and OTHER_ARCHITECTURES.search(case):
            item.add_marker(pytest.mark.slow)
    # So that no worker is left with one of them at the end.
    items.sort(key=lambda item: not item.nodeid.startswith(tuple(f"tests/{room}/" for room in DEAREST_ROOMS)))


def pytest_collection_finish() -> None:
    """Let garbage collections pass over the modules and tests, which stay to the end: that is a tenth of all time."""
    gc.collect()
    gc.freeze()


too_long: list[pytest.TestReport] = []
"""Tests that are not marked and took more than LONGEST_S."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if (
        report.when == "call"
        and report.duration > LONGEST_S
        and not {"slow", "ray", "pretrained"} & set(report.keywords)
    ):
        too_long.append(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that should be faster or marked. They do not fail: on a busy machine any test takes long."""
    if too_long:
        terminalreporter.section(f"tests that took more than {LONGEST_S:g} s without being marked slow")
        for report in sorted(too_long, key=lambda report: -report.duration):
            terminalreporter.line(f"{report.duration:6.1f} s  {report.nodeid}")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real corpora beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real corpora at {SHARED_DATA}")
    return SHARED_DATA
