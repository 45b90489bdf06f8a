"""What can go wrong, as one tree.

RaysweepError
├── UsageError          your file or arguments are wrong: exit 2, nothing was started
│   ├── SpecError       a job or a search space; holds every fault found
│   ├── DataError       a corpus that is missing, empty, too short or not text
│   ├── ModelError      a model that is missing, incomplete or of an unknown family
│   │   └── NotApplicableError  one that lacks what an analysis measures
│   └── ArchiveError    a results folder or a sweep that cannot be used as asked
└── RunError            the run failed: exit 1
    ├── TrialError      one trial cannot go on (recorded as FAILED)
    │   ├── BudgetError     more heads are to go, or to be grown, than there are
    │   └── DivergedError   its loss is no number any more (recorded as DIVERGED)
    ├── ClusterError    Ray could not give or keep what the sweep needs
    └── DiskFullError   no space is left; what was written is whole, and the sweep can be resumed
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


class RaysweepError(Exception):
    """Base of everything raysweep raises for a person to read."""

    exit_code = 1


class UsageError(RaysweepError):
    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a file: where it is, what stands there and the way out."""

    file: str
    key: str
    message: str
    value: Any = None

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        shown = "" if self.value is None else f" = {self.value!r}"
        return f"{where}{shown}: {self.message}"


class SpecError(UsageError):
    """A job or search space with faults; `faults` lists them all."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)  # what it is made from, so that it can be pickled
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
    """Heads are to go, or to be grown, that cannot; `key` is the setting of the job that asks for them."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message, key)  # what it is made from, so that it can be pickled
        self.key = key

    def __str__(self) -> str:
        return str(self.args[0])


class DivergedError(TrialError):
    pass


class ClusterError(RunError):
    pass


class DiskFullError(RunError):
    pass


def known_names_hint(name: str, known: Iterable[str]) -> str:
    """Say which names exist and which one was probably meant."""
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)  # YAML reads a key such as `on` as True
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"no {name!r}.{meant} Known: {', '.join(names)}."
