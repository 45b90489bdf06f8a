"""All errors that raysweep raises, as one tree.

RaysweepError
├── UsageError          your file or arguments are wrong: exit 2, nothing was started
│   ├── SpecError       a job or a search space is wrong; holds all its faults
│   ├── DataError       a corpus is missing, empty, too short or not text
│   ├── ModelError      a model is missing, incomplete or of an unknown family
│   │   └── NotApplicableError  a model lacks the part that an analysis measures
│   └── ArchiveError    a results folder or a sweep cannot be used in this way
└── RunError            the run failed: exit 1
    ├── TrialError      one trial cannot continue (recorded as FAILED)
    │   ├── BudgetError     more heads are to be removed or grown than possible
    │   └── DivergedError   the loss of a trial is not finite (recorded as DIVERGED)
    ├── ClusterError    Ray could not provide or keep the resources of the sweep
    └── DiskFullError   the disk is full; what was written is whole, and the sweep can be resumed
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

LONGEST_SHOWN = 200
"""Most characters of a value that a message shows: enough to find it by, and a line stays a line."""


class RaysweepError(Exception):
    """Base of all errors whose message a person should read; anything else is a bug and shows its traceback."""

    # Of the command line: 1 for a run that failed, 2 for files and arguments that are wrong, as click has it.
    exit_code = 1


class UsageError(RaysweepError):
    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a file: its key, the value found there, and a message that says what to write instead."""

    file: str
    key: str
    message: str
    value: Any = None

    def __str__(self) -> str:
        # A fault of the file as a whole has no key, and a whole section is no value worth printing.
        where = f"{self.file}: {self.key}" if self.key else self.file
        shown = "" if self.value is None else f" = {_shortened(repr(self.value))}"
        return f"{where}{shown}: {self.message}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


class SpecError(UsageError):
    """A job or search space is wrong; `faults` lists all its faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        # pickle, by which Ray carries errors, makes an exception anew from what its base was given.
        super().__init__(faults)
        self.faults = list(faults)

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


class DataError(UsageError):
    pass


class ModelError(UsageError):
    pass


class NotApplicableError(ModelError):
    pass


class ArchiveError(UsageError):
    pass


class RunError(RaysweepError):
    pass


class TrialError(RunError):
    pass


class BudgetError(TrialError):
    """More heads are to be removed or grown than possible; `key` is the setting of the job that asks for them."""

    def __init__(self, message: str, key: str) -> None:
        # Both arguments, for pickle: see SpecError.
        super().__init__(message, key)
        self.key = key

    def __str__(self) -> str:
        return str(self.args[0])


class DivergedError(TrialError):
    pass


class ClusterError(RunError):
    pass


class DiskFullError(RunError):
    pass


class DamagedWarning(UserWarning):
    """Lines of a sweep's records were left out, because they are damaged."""


def known_names_hint(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the name that was probably meant, and all known names."""
    names = sorted(known)
    # Not every key is text: YAML reads `on` as True.
    # A name much longer than all others is like none, and comparing it takes time with the square of its length.
    close = get_close_matches(str(name)[:LONGEST_SHOWN], names, n=1, cutoff=0.5)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"no {_shortened(repr(name))}.{meant} Known: {', '.join(names)}."
