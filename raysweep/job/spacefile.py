"""Read the file of a search space: resolve what it includes, and the groups of parameters that it uses.

include: heads_small.yaml            or a list; from the file's own folder, or as `search.space` is looked for
groups:
  growing:                           parameters that belong together, perhaps all under one condition
    when: {cycle.grow.ratio: {above: 0}}
    cycle.grow.init: {choice: [zero_output, split]}
    cycle.learn.new_head_lr_multiplier: {log_uniform: [1, 10]}
use: [growing]                       groups of this file or of included ones; unused ones are no part of the space

An entry of the file replaces an included one with the same path; rules of all files apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import isfile  # unlike Path.is_file, it takes any text: a name may be too long for a path
from pathlib import Path
from typing import Any

from raysweep.errors import LONGEST_SHOWN, Fault, SpecError, known_names_hint
from raysweep.job import bounds
from raysweep.job.paths import DEEPEST
from raysweep.job.shipped import KINDS, find_shipped, shipped_files
from raysweep.job.space import REQUIRE, Space, parse_space
from raysweep.job.yamlfile import load_mapping

INCLUDE, GROUPS, USE = "include", "groups", "use"


@dataclass
class _Entries:
    """The entries of all files read so far: bodies and files by path, groups by name, and rules."""

    bodies: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    groups: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    rules: list[Any] = field(default_factory=list)


def load_space(given: str | Mapping[str, Any], source: str) -> Space:
    """Load the space that a job names or contains.

    Args:
        given: a file, or the space as a mapping.
        source: the job's file.

    Raises:
        SpecError: a file is missing, or all faults of its entries.
    """
    entries = _Entries()
    if isinstance(given, str):
        path = _found(given, source, "search.space")
        file = str(path)
        _read(load_mapping(path), file, file, (str(path.resolve()),), entries)
    else:
        file = f"{source} (search.space)"
        _read(given, file, source, (), entries)
    flat = {**entries.bodies, **({REQUIRE: entries.rules} if entries.rules else {})}
    deep = next((path for path in flat if path.count(".") >= DEEPEST), None)
    if deep is not None:
        raise _refused(file, deep[:LONGEST_SHOWN], f"has more than {DEEPEST} parts, which no setting has.")
    if sum(map(_corners_of, flat.values())) > bounds.CORNERS:
        message = f"holds more than {bounds.CORNERS:,} choices, ranges (three each) and fixed values; leave some out."
        raise _refused(file, "", message)
    return parse_space(flat, file, {path: origin for path, origin in entries.origins.items() if origin != file})


def _corners_of(body: Any) -> int:
    """Return at how many points the job is checked for an entry of a space."""
    choices = body.get("choice") if isinstance(body, Mapping) else None
    return len(choices) if isinstance(choices, list) else 3 if isinstance(body, Mapping) else 1


def _read(raw: Mapping[str, Any], file: str, place: str, inside: tuple[str, ...], entries: _Entries) -> None:
    """Add the entries of a file to those of the files that it includes.

    Args:
        file: its name in faults.
        place: the file from whose folder it looks for others.
        inside: resolved paths of the files that include it, itself as the last.
    """
    # Included files come first, so that the entries of this file replace theirs.
    for name in _listed(raw, INCLUDE, file):
        found = _found(name, place, INCLUDE)
        if str(found.resolve()) in inside:
            raise _refused(file, INCLUDE, "includes itself, perhaps through other files.", name)
        _read(load_mapping(found), str(found), str(found), (*inside, str(found.resolve())), entries)
    # All groups are known before any is used: a file may use a group that it defines below, or that it includes.
    entries.groups.update({name: (file, group) for name, group in _groups(raw, file).items()})
    own = {str(path): body for path, body in raw.items() if path not in (INCLUDE, GROUPS, USE, REQUIRE)}
    for name in _listed(raw, USE, file):
        if name not in entries.groups:
            raise _refused(file, USE, f"group: {known_names_hint(name, entries.groups)}", name)
        origin, group = entries.groups[name]
        for path, body in _with_conditions(group, origin, name).items():
            # A group and the file that uses it are written together, so one of the two entries must be a mistake.
            if path in own:
                raise _refused(file, path, f"is also in group {name!r}, which the file uses.")
            _put(entries, path, body, origin)
    for path, body in own.items():
        _put(entries, path, body, file)
    # Whatever is malformed here is kept: `parse_space` names it together with all other faults.
    rules = raw.get(REQUIRE, [])
    entries.rules += rules if isinstance(rules, list) else [rules]


def _put(entries: _Entries, path: str, body: Any, file: str) -> None:
    # Removed first: a dict would keep the place of the old entry, but the order of parameters is that of the new one.
    entries.bodies.pop(path, None)
    entries.bodies[path] = body
    entries.origins[path] = file


def _with_conditions(group: Mapping[str, Any], file: str, name: str) -> dict[str, Any]:
    """Return a group's entries, each with the group's condition added to its own."""
    shared = group.get("when", {})
    bodies = {str(path): body for path, body in group.items() if path != "when"}
    if not isinstance(shared, Mapping):
        raise _refused(file, f"{GROUPS}.{name}.when", "when needs {path: value}.", shared)
    # Without a condition a group may also hold fixed values.
    if not shared:
        return bodies
    for path, body in bodies.items():
        if not isinstance(body, Mapping):
            raise _refused(file, f"{GROUPS}.{name}.{path}", "a fixed value cannot stand under a condition.", body)
        own = body.get("when", {})
        # Two conditions on the same parameter cannot both stand in one mapping, and one must not silently win.
        both = [parent for parent in shared if isinstance(own, Mapping) and parent in own]
        if both:
            message = f"names {both[0]} in its own condition and in that of its group; leave one out."
            raise _refused(file, f"{GROUPS}.{name}.{path}", message)
        bodies[path] = {**body, "when": {**shared, **own} if isinstance(own, Mapping) else own}
    return bodies


def _groups(raw: Mapping[str, Any], file: str) -> Mapping[str, Mapping[str, Any]]:
    groups = raw.get(GROUPS, {})
    if not isinstance(groups, Mapping):
        raise _refused(file, GROUPS, "needs {name: {path: parameter}}.", groups)
    for name, group in groups.items():
        if not isinstance(group, Mapping) or not set(group) - {"when"}:
            raise _refused(file, f"{GROUPS}.{name}", "needs {path: parameter}.", group)
    return groups


def _listed(raw: Mapping[str, Any], key: str, file: str) -> Iterable[str]:
    given = raw.get(key, [])
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _refused(file, key, "needs a name, or a list of names.", given)
    # Twice the same file or group has no effect, so it is a mistake for another one.
    if len(set(names)) < len(names):
        raise _refused(file, key, "gives a name twice.", given)
    return names


def _found(given: str, source: str, key: str) -> Path:
    """Return the file of a name: from the folder of `source`, the one above it, the working folder, or as shipped.

    Raises:
        SpecError: there is no such file.
    """
    folder = Path(source).parent
    # The folder above finds search_spaces/x.yaml for a job in jobs/, from whatever folder raysweep is called.
    # They come first: a job that was copied to another folder takes the space that was copied with it.
    places = [folder / given, folder.parent / given, Path(given)]
    shipped = [place for place in map(find_shipped, places) if place is not None]
    found = next((place for place in [*places, *shipped] if isfile(place)), None)
    if found is None:
        looked = ", ".join(dict.fromkeys(str(place.parent) for place in places))
        message = f"no such file; looked in {looked}. As shipped: {known_names_hint(given, shipped_files(KINDS[1]))}"
        raise _refused(source, key, message, given)
    return found


def _refused(file: str, key: str, message: str, value: Any = None) -> SpecError:
    return SpecError([Fault(file=file, key=key, value=value, message=message)])
