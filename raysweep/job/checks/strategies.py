"""Check that the strategies of a job exist, and take the options that it gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raysweep.errors import Fault, known_names_hint
from raysweep.job import registry
from raysweep.job.checks.sections import (
    STRATEGY_KEYS,
    file_of,
    known_options,
    name_in,
    options_of,
    section_class,
    sentence,
    unknown_setting,
)
from raysweep.job.paths import get_path


def strategy_faults(raw: Mapping[str, Any], source: str) -> Iterable[Fault]:
    """Check the name of every strategy, and the options of each section in which all names are known."""
    for section, strategies in STRATEGY_KEYS.items():
        body = get_path(raw, section)
        names = {kind: name_in(section, key, body) for kind, key in strategies} if isinstance(body, Mapping) else {}
        unknown = False
        for kind, name_key in strategies:
            file = file_of(kind, names[kind]) if isinstance(names.get(kind), str) else None
            if file is not None:
                try:
                    registry.look(kind, file)
                except registry.UnknownNameError as error:
                    unknown = True
                    yield Fault(file=source, key=f"{section}.{name_key}", value=names[kind], message=str(error))
        if not isinstance(body, Mapping):
            continue
        if not unknown and all(isinstance(name, str) for name in names.values()):
            yield from _option_faults(section, names, body, source)
            continue
        # Nobody can say which options are right, but a key that no strategy knows may be the name's, misspelt.
        for option in options_of(section, body):
            if message := unknown_setting(f"{section}.{option}"):
                yield Fault(file=source, key=f"{section}.{option}", value=body[option], message=message)


def _option_faults(section: str, names: Mapping[str, str], body: Mapping[str, Any], source: str) -> Iterable[Fault]:
    """Check that one of a section's strategies knows each option, and accepts its value."""
    given = options_of(section, body)
    known = {kind: known_options(kind, name) for kind, name in names.items()}
    for kind, name in names.items():
        # Each strategy is asked about the options that it knows: cycle.grow has those of grow and of init side by side.
        options = {option: body[option] for option in given if option in known[kind]}
        file = file_of(kind, name)
        for option, value, message in registry.option_faults(kind, file, options) if file else ():
            yield Fault(file=source, key=f"{section}.{option}".rstrip("."), value=value, message=sentence(message))
    all_known = [*section_class(section).model_fields, *(o for options in known.values() for o in options)]
    for option in (
        given if all(registry.knows_options(kind, file_of(kind, name)) for kind, name in names.items()) else ()
    ):
        if not any(option in options for options in known.values()):
            message = f"unknown key: {known_names_hint(option, all_known)}"
            yield Fault(file=source, key=f"{section}.{option}", value=body[option], message=sentence(message))


def form_faults(grow: Any, source: str) -> Iterable[Fault]:
    """Check that a growth measures its sensitivity in a form that fits the initialisation of new heads."""
    # Some first weights make a gradient exactly 0, and a growth that ranks slots by it would choose at random.
    if not isinstance(grow, Mapping) or "form" not in known_options("grow", grow.get("strategy")):
        return
    init, form = name_in("cycle.grow", "init", grow), grow.get("form")
    # What is no text has a fault of its own.
    if not isinstance(init, str) or not isinstance(form, str):
        return
    names = [name for name in {*registry.available("init"), init} if _exists("init", name)]
    forms = {name: registry.attribute_of("init", name, "forms") or () for name in sorted(names)}
    # A form that no initialisation has is a fault of the option, which is checked elsewhere.
    known = {known for fitting in forms.values() for known in fitting}
    # Nothing is known of the forms of an initialisation outside raysweep that computes them.
    if init in names and forms[init] and form in known and form not in forms[init]:
        fitting = ", ".join(map(repr, forms[init]))
        others = ", ".join(repr(name) for name in forms if form in forms[name])
        message = f"does not fit init {init!r}, which takes {fitting}; it fits {others}."
        yield Fault(file=source, key="cycle.grow.form", value=form, message=message)


def _exists(kind: str, name: str) -> bool:
    """Return whether there is a strategy of a name."""
    try:
        registry.look(kind, name)
    except registry.UnknownNameError:
        return False
    return True
