"""Say which code the outcomes of a sweep come from, and what of it changed since the sweep began."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raysweep.errors import ArchiveError
from raysweep.job import code
from raysweep.job.jobfile import Job
from raysweep.job.paths import get_path
from raysweep.job.plan import versions
from raysweep.records.folder import SweepFolder

CONTROLS = {"random_random": (("prune", "random"), ("grow", "random")), "rewind": (("init", "rewind"),)}
"""Strategies that a control arm brings along, beside those that the job names."""
MOST_NAMED = 8
"""So many changed files are named in a message."""


def code_of(job: Job, points: Iterable[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Return everything that can change an outcome of a sweep: file -> digest, package -> version.

    Args:
        points: values of trials that may name strategies which neither the job nor its space does, as forks do.
    """
    return {**versions(), **code.core(), **code.of_strategies(sorted(set(_strategies(job, points))))}


def _strategies(job: Job, points: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    # The job names one strategy of a kind, its space any number, and a fork may name one that neither does.
    spec, known = job.spec.resolved(), list(points)
    for phase, named in code.IN_PHASES.items():
        for kind, key in named:
            path = f"cycle.{phase}.{key}"
            choices = [
                choice for parameter in (job.space.parameters if job.space else ()) if parameter.path == path
                for choice in parameter.choices
            ]  # fmt: skip
            found = [get_path(spec, path), *choices, *(values.get(path) for values in known)]
            yield from ((kind, name) for name in found if isinstance(name, str))
    for arm in job.spec.search.controls if job.spec.search else ():
        yield from CONTROLS.get(arm, ())


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what changed, a few words each: `trial/acts.py`, `torch 2.13.0 -> 2.14.0`."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        # A strategy that only one of the two names was not in use on the other side: nothing of it changed.
        if old == new or (None in (old, new) and not _in_a_room(name)):
            continue
        found.append(f"{name} {old} -> {new}" if name in versions() else name)
    return found


def _in_a_room(file: str) -> bool:
    return file in code.FILES or file.startswith(tuple(f"{room}/" for room in code.ROOMS))


def check_code(folder: SweepFolder, now: Mapping[str, str], *, accept: bool) -> list[str]:
    """Return what changed in the code that a sweep's outcomes come from, where that is accepted.

    Raises:
        ArchiveError: something changed, and it was not accepted.
    """
    before = folder.environment().get("code")
    if before is None:
        found = ["all of it, as far as is known: the sweep was begun by a raysweep that kept no record of its code"]
    else:
        found = changes(before, now)
    if found and not accept:
        named = ", ".join(found[:MOST_NAMED]) + (f" and {len(found) - MOST_NAMED} more" if found[MOST_NAMED:] else "")
        raise ArchiveError(
            f"sweep {folder.name!r} was begun with other code. Changed: {named}. Put that code back, or go on with "
            "--accept-new-code: trials that have ended stay as they are, and what is run from now on is run by the "
            "code that is here, under phase keys of its own."
        )
    return found


def record_code(folder: SweepFolder, now: Mapping[str, str], changed: bool) -> None:
    """Write which code a sweep goes on with; what it ran before stands in `earlier_code`, oldest first."""
    about = folder.environment()
    before, earlier = about.get("code"), about.get("earlier_code", [])
    if changed or before != now:
        folder.replace_environment(
            {**about, "code": dict(now), "earlier_code": [*earlier, *([before] if changed and before else [])]}
        )
