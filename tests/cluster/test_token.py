"""The token of Ray's authentication is readable by its owner alone, and is repaired where it was not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysweep.cluster.token import keep_token_private
from raysweep.errors import ClusterError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_private_from_the_start_and_kept(home: Path) -> None:
    keep_token_private()
    path = home / ".ray" / "auth_token"
    token = path.read_text()
    assert mode(path) == 0o600 and mode(path.parent) == 0o700 and len(token) == 64
    keep_token_private()
    assert path.read_text() == token and [entry.name for entry in path.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize("rights", [0o644, 0o640, 0o666, 0o604])
@pytest.mark.parametrize("named", [False, True])
def test_a_token_that_others_can_read_is_repaired(
    home: Path, monkeypatch: pytest.MonkeyPatch, rights: int, named: bool
) -> None:
    path = home / ("mine" if named else ".ray") / "auth_token"
    path.parent.mkdir()
    path.write_text("a" * 64)
    path.chmod(rights)
    if named:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    keep_token_private()
    assert mode(path) == 0o600 and path.read_text() == "a" * 64


def test_where_no_token_can_be_kept_the_way_out_is_said(home: Path) -> None:
    (home / ".ray").write_text("a file")
    with pytest.raises(ClusterError, match="cannot be kept private .* RAY_AUTH_TOKEN_PATH"):
        keep_token_private()


def test_a_token_of_the_environment_needs_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    keep_token_private()
    assert not (home / ".ray").exists()
