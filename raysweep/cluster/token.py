"""Keep the token of Ray's authentication private: whoever can read it can run code as its owner."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from raysweep.errors import ClusterError

PRIVATE = 0o600


def keep_token_private() -> None:
    """Make the token file that Ray would make, readable by its owner alone, and repair the rights of one that is there.

    Ray makes it with the rights that the umask leaves, by which everyone on the machine can read it.

    Raises:
        ClusterError: the file cannot be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        # One that a person named is theirs to make.
        if not path.exists() and not named:
            _make(path)
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & ~PRIVATE:
            path.chmod(PRIVATE)
    except OSError as error:
        raise ClusterError(
            f"Ray's token {str(path)!r} cannot be kept private ({error.strerror}). Set RAY_AUTH_TOKEN_PATH to a "
            "file of your own with a token, or HOME to a folder that can be written."
        ) from error


def _make(path: Path) -> None:
    """Write a new token; one that another process writes at the same time is kept."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Temporary files are readable by their owner alone. A link appears whole, and fails where there is a file already.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".token-") as new:
        new.write(secrets.token_hex(32))
        new.flush()
        try:
            os.link(new.name, path)
        except FileExistsError:
            return
