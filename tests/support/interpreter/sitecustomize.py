"""Changes every Python that a test run starts, itself included, as the options of conftest.py ask.

The options are handed on in the environment, and this file is found first on PYTHONPATH, so that processes that
tests start are changed too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

KEY_SALT, WITHOUT_TORCH = "RAYSWEEP_TESTS_KEY_SALT", "RAYSWEEP_TESTS_WITHOUT_TORCH"


class TorchImported(ImportError):
    """Torch was imported where it must not be."""


class Refusal(MetaPathFinder):
    """Refuses to find torch."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torch":
            raise TorchImported(
                "a run --without-torch came to torch: mark the test torch, or keep torch out of what it tests"
            )
        return None


def salt_keys(salt: str) -> None:
    """Let transformers appear in a release that does not exist: its version is in every phase key."""
    plain = metadata.Distribution.version.fget  # type: ignore[attr-defined]

    def salted(distribution: metadata.Distribution) -> str:
        version = str(plain(distribution))
        return f"{version}+{salt}" if distribution.metadata["Name"] == "transformers" else version

    metadata.Distribution.version = property(salted)  # type: ignore[assignment,method-assign]


def apply() -> None:
    """Change this process."""
    if salt := os.environ.get(KEY_SALT):
        salt_keys(salt)
    if os.environ.get(WITHOUT_TORCH):
        sys.meta_path.insert(0, Refusal())


apply()
