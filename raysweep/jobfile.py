"""Load a job file and check it whole: every fault at once, with file, key, value and the nearest known name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pydantic

from raysweep import expressions, registry
from raysweep.errors import Fault, SpecError, known_names_hint
from raysweep.space import DRAWS, REQUIRE, Space, Values, get_path, set_path
from raysweep.spacefile import load_space
from raysweep.spec import MEASURED, JobSpec, SearchSpec
from raysweep.yamlfile import load_mapping, parse_scalar

STRATEGY_KEYS = {
    # path of the section: (kind, key of the name) of each strategy that has its options there
    "cycle.prune": (("prune", "strategy"),),
    "cycle.grow": (("grow", "strategy"), ("init", "init")),
    "search.sampler": (("samplers", "name"),),
    "search.stopping": (("schedulers", "name"),),
}
MADE_BY = {"baseline": None, "prune": "prune", "measure": "prune", "grow": "grow", "learn": "learn"}
"""Kind of phase -> the part of a cycle that brings it; a baseline there always is."""
PATH_KEYS = ("model.name", "data.name", "data.tokenizer")
FORMS_OF_VALUES = ("str", "dict[str,any]", "one", "several")
"""What pydantic adds to a key that takes values of several forms."""
TRIAL_SECTIONS = ("model", "data", "training", "cycle")
UNKNOWN = "neither in this space nor set in the job"
RANDOM_POINTS = 64
FEWEST = DRAWS // 50
"""Of so many random points that must meet the rules of a space, for there to be something to search among."""
OUTSIDE = "is not part of a trial; a space may search under"
Number = Callable[[str, int], int]
"""Returns a whole number of the job by its path, or a default where there is none."""
ToFault = Callable[[str, Any, str], Fault]
INTEGER = pydantic.TypeAdapter(int)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked job: its spec, its space (None: a single trial) and the file it came from."""

    spec: JobSpec
    space: Space | None
    source: str

    @property
    def warnings(self) -> list[str]:
        """What its space does to the sharing of phases, a sentence each."""
        return self.space.warnings(self.spec.resolved()) if self.space else []

    def with_values(self, values: Mapping[str, Any], seed: int | None = None) -> JobSpec:
        """Return the spec of one trial: the job with a point of the space, and the trial's seed, filled in.

        Args:
            seed: None: the job's own.

        Raises:
            SpecError: the values break a rule of the job.
        """
        spec = _parse_spec(apply_values(self.spec.resolved(), values), self.source)
        return spec if seed is None else spec.model_copy(update={"seed": seed})


def load_job(job: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Load and check a job, a file or a mapping, with `key=value` overrides applied first.

    Names that are files or folders here become absolute: workers run elsewhere.

    Raises:
        SpecError: all faults of the job, of the overrides and of its search space.
    """
    source = "job" if isinstance(job, Mapping) else str(job)
    raw = job if isinstance(job, Mapping) else load_mapping(Path(job))
    values, faults = parse_settings(overrides)
    raw = apply_values(raw, values)
    for path in PATH_KEYS:
        value = get_path(raw, path)
        if isinstance(value, str) and value and Path(value).exists():
            set_path(raw, path, str(Path(value).resolve()))
    try:
        checked = check_job(raw, source)
    except SpecError as error:
        for fault in error.faults:
            overridden = fault.file == source and fault.key in values
            faults.append(replace(fault, file="--set") if overridden else fault)
    else:
        searched = (*checked.space.paths, *checked.space.constants) if checked.space else ()
        faults += [
            Fault(file="--set", key=path, value=values[path], message="the space sets this; it would have no effect.")
            for path in searched if path in values
        ]  # fmt: skip
    if faults:
        raise SpecError(faults)
    return checked


def parse_settings(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """Read settings given as `key=value`; return those, and the faults of the others."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if separator and key.strip():
            values[key.strip()] = parse_scalar(value)
        else:
            faults.append(Fault(file="--set", key=override, message="write it as key=value."))
    return values, faults


def check_job(raw: Mapping[str, Any], source: str) -> Job:
    """Check a job given as a mapping; `source` is the file named in faults.

    Raises:
        SpecError: all faults.
    """
    faults: list[Fault] = []
    spec, space = None, None
    try:
        space = _load_space(raw, source)
    except SpecError as error:
        faults += error.faults
    constants = space.constants if space else {}
    outside = [path for path in constants if path.split(".")[0] not in TRIAL_SECTIONS]
    try:
        spec = _parse_spec(
            apply_values(raw, {path: constants[path] for path in constants if path not in outside}), source
        )
    except SpecError as error:
        own = [space.fault(f.key, f.message, f.value) if space and f.key in constants else f for f in error.faults]
        faults = own + faults
    if space is not None:
        faults += [space.fault(path, f"{OUTSIDE} {', '.join(TRIAL_SECTIONS)}.") for path in outside]
    if spec is not None and spec.search is not None and space is not None:
        faults += [*_space_faults(spec, space, source), *_sampler_faults(spec.search, space, source)]
    if faults or spec is None:
        raise SpecError(faults)
    if spec.search is not None and space is not None:
        spec = spec.model_copy(update={"search": spec.search.model_copy(update={"space": dict(space.raw)})})
    return Job(spec=spec, space=space, source=source)


def apply_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a job's mapping with a value set at each dotted path.

    Where a value names another strategy, the options of the one it replaces are dropped: they belong to it.
    """
    changed = copy.deepcopy(dict(raw))
    for section, strategies in STRATEGY_KEYS.items():
        body = get_path(changed, section)
        if not isinstance(body, dict):
            continue
        names = {name_key: values.get(f"{section}.{name_key}") for _, name_key in strategies}
        stay = [(kind, key) for kind, key in strategies if names[key] in (None, _name_in(section, key, body))]
        if len(stay) < len(strategies):
            kept = {option for kind, key in stay for option in _known_options(kind, _name_in(section, key, body))}
            for option in set(_options_of(section, body)) - kept:
                del body[option]
    for path, value in values.items():
        set_path(changed, path, value)
    return changed


def _parse_spec(raw: Mapping[str, Any], source: str) -> JobSpec:
    faults: list[Fault] = []
    spec = None
    try:
        spec = JobSpec.model_validate(raw)
    except pydantic.ValidationError as error:
        for detail in error.errors():
            fault = _to_fault(detail, source)
            if fault.key not in (other.key for other in faults):  # a setting of several types fails each of them
                faults.append(fault)
    faults += _strategy_faults(raw, source)
    faults += _cross_faults(raw, source)
    if faults or spec is None:
        raise SpecError(faults)
    return spec


def _to_fault(detail: Any, source: str) -> Fault:
    location = [str(part) for part in detail["loc"] if part not in FORMS_OF_VALUES]
    value = None if isinstance(detail["input"], dict) else detail["input"]
    message = _sentence(detail["msg"].removeprefix("Value error, "))
    if detail["type"] == "extra_forbidden":
        message = f"unknown key: {_nearest_field(location)}"
    elif detail["type"] == "missing":
        message = "required, but missing."
    elif detail["type"] == "model_type":
        message = "must be a mapping of keys to values."
    return Fault(file=source, key=".".join(location), value=value, message=message)


def _sentence(message: str) -> str:
    return f"{message[0].lower()}{message[1:].rstrip('.')}."


def _section_class(location: Sequence[str]) -> type[pydantic.BaseModel]:
    """Return the spec class of the section at a location."""
    section: type[pydantic.BaseModel] = JobSpec
    for part in location:
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel))
    return section


def _nearest_field(location: Sequence[str]) -> str:
    return known_names_hint(location[-1], _section_class(location[:-1]).model_fields)


def _options_of(section: str, body: Mapping[str, Any]) -> list[str]:
    fields = _section_class(section.split(".")).model_fields
    return [key for key in body if key not in fields]


def _strategy_faults(raw: Mapping[str, Any], source: str) -> Iterable[Fault]:
    """Check every strategy's name, and the options of a section where all its names are known."""
    for section, strategies in STRATEGY_KEYS.items():
        body = get_path(raw, section)
        names = {kind: _name_in(section, key, body) for kind, key in strategies} if isinstance(body, Mapping) else {}
        unknown = False
        for kind, name_key in strategies:
            if isinstance(names.get(kind), str):
                try:
                    registry.load(kind, names[kind])
                except registry.UnknownNameError as error:
                    unknown = True
                    yield Fault(file=source, key=f"{section}.{name_key}", value=names[kind], message=str(error))
        if isinstance(body, Mapping) and not unknown and all(isinstance(name, str) for name in names.values()):
            yield from _option_faults(section, names, body, source)


def _option_faults(section: str, names: Mapping[str, str], body: Mapping[str, Any], source: str) -> Iterable[Fault]:
    """Check the options of a section's strategies: each is known to one of them, and as that one wants it."""
    given = _options_of(section, body)
    known = {kind: _known_options(kind, name) for kind, name in names.items()}
    for kind, name in names.items():
        options = {option: body[option] for option in given if option in known[kind]}
        for option, value, message in registry.option_faults(kind, name, options):
            yield Fault(file=source, key=f"{section}.{option}".rstrip("."), value=value, message=_sentence(message))
    all_known = [*_section_class(section.split(".")).model_fields, *(o for options in known.values() for o in options)]
    for option in given:
        if not any(option in options for options in known.values()):
            message = f"unknown key: {known_names_hint(option, all_known)}"
            yield Fault(file=source, key=f"{section}.{option}", value=body[option], message=_sentence(message))


def _name_in(section: str, name_key: str, body: Mapping[str, Any]) -> Any:
    """Return a strategy's name as a section says it, or its default."""
    return body.get(name_key, _section_class(section.split(".")).model_fields[name_key].default)


def _known_options(kind: str, name: Any) -> list[str]:
    """Return the options of a strategy; none where there is no such strategy, which is a fault of its own."""
    try:
        return list(registry.load(kind, name).__dataclass_fields__) if isinstance(name, str) else []
    except registry.UnknownNameError:
        return []


def _cross_faults(raw: Mapping[str, Any], source: str) -> Iterable[Fault]:
    """Check rules between keys; each only where its own keys are well-formed."""

    def number(path: str, default: int) -> int:
        try:
            value = INTEGER.validate_python(get_path(raw, path))  # '16' is 16, as in the spec
        except pydantic.ValidationError:
            return default
        return value if value > 0 else default

    def fault(key: str, value: Any, message: str) -> Fault:
        return Fault(file=source, key=key, value=value, message=message)

    cycle = get_path(raw, "cycle")
    if isinstance(cycle, Mapping) and cycle.get("grow") is not None and cycle.get("prune") is None:
        yield fault("cycle.grow", None, "nothing to grow back without pruning; add cycle.prune or remove cycle.grow.")
    yield from _cycle_faults(raw, number, fault)
    yield from _form_faults(cycle.get("grow") if isinstance(cycle, Mapping) else None, source)
    batch = number("training.batch_size", 16)
    workers, accumulation = number("scale.workers", 1), number("training.accumulation", 1)
    if batch % (workers * accumulation):
        yield fault(
            "training.batch_size", batch,
            f"must be a multiple of scale.workers x training.accumulation = {workers} x {accumulation}.",
        )  # fmt: skip
    seq_len, eval_tokens = number("data.seq_len", 128), number("data.eval_tokens", 8_192)
    if eval_tokens < seq_len:
        yield fault("data.eval_tokens", eval_tokens, f"must hold at least one window of data.seq_len = {seq_len}.")
    steps, warmup = number("cycle.learn.steps", 0), number("cycle.learn.gate_warmup_steps", 0)
    if steps and warmup > steps:
        yield fault("cycle.learn.gate_warmup_steps", warmup, f"must be at most cycle.learn.steps = {steps}.")
    decay = number("cycle.learn.multiplier_decay_steps", 0)
    if steps and decay > steps:
        yield fault("cycle.learn.multiplier_decay_steps", decay, f"must be at most cycle.learn.steps = {steps}.")
    streamed = get_path(raw, "data.name") == "c4"
    if streamed != (get_path(raw, "data.max_tokens") is not None):
        way = (
            "c4 is streamed: say how many training tokens to take."
            if streamed
            else "only streamed corpora (c4) take it."
        )
        yield fault("data.max_tokens", get_path(raw, "data.max_tokens"), way)


def _cycle_faults(raw: Mapping[str, Any], number: Number, fault: ToFault) -> Iterable[Fault]:
    """Check what several cycles, events inside training and control arms need of the rest of the cycle."""
    has = {part for part in ("baseline", "prune", "grow", "learn") if get_path(raw, f"cycle.{part}") is not None}
    cycles = number("cycle.cycles", 1)
    level, step = get_path(raw, "cycle.prune.level"), get_path(raw, "cycle.level_escalation")
    if step and isinstance(level, int | float) and isinstance(step, int | float) and level + (cycles - 1) * step >= 1:
        yield fault("cycle.level_escalation", step, f"the level of cycle {cycles} would not be below 1.")
    for rule in ("regression", "plateau"):
        if get_path(raw, f"cycle.{rule}") is not None and "learn" not in has:
            yield fault(f"cycle.{rule}", None, "is judged after learning; add cycle.learn.")
    patience = number("cycle.plateau.patience", 2)
    if get_path(raw, "cycle.plateau") is not None and patience >= cycles:
        yield fault("cycle.plateau.patience", patience, f"could never fire: must be below cycle.cycles = {cycles}.")
    if get_path(raw, "cycle.continuous") is not None:
        yield from _continuous_faults(raw, has, number, fault)
    yield from _control_faults(raw, has, fault)
    yield from _constraint_faults(raw, has, fault)
    yield from _goal_faults(raw, number, fault)
    rule = get_path(raw, "search.stopping.name")
    if rule not in (None, "none") and get_path(raw, "training.evaluate_every") is None:
        way = "judges held-out losses inside training; say every how many steps with training.evaluate_every."
        yield fault("search.stopping.name", rule, way)
    trials = number("search.trials", 1)
    if get_path(raw, "search.space") is None and trials > 1:
        yield fault("search.trials", trials, "all would be equal without search.space; add one, or leave trials out.")


def _control_faults(raw: Mapping[str, Any], has: Container[str], fault: ToFault) -> Iterable[Fault]:
    arms = get_path(raw, "search.controls")
    for arm in arms if isinstance(arms, list | tuple) else ():
        needed = {"rewind": "grow", "no_regrow": "grow", "random_random": "prune", "dense": "prune"}.get(arm)
        if needed is not None and needed not in has:
            yield fault("search.controls", arm, f"would be the trial itself without cycle.{needed}; leave it out.")
        if arm == "from_scratch_small" and "baseline" not in has and "learn" not in has:
            yield fault("search.controls", arm, "has no steps to train for; add cycle.baseline or cycle.learn.")


def _goal_faults(raw: Mapping[str, Any], number: Number, fault: ToFault) -> Iterable[Fault]:
    """Check what a search minimizes, and that what it says of seeds has an effect."""
    minimize = get_path(raw, "search.minimize")
    if isinstance(minimize, list | tuple) and (not minimize or len(set(map(str, minimize))) < len(minimize)):
        yield fault("search.minimize", minimize, "name at least one objective, and none twice.")
    top = get_path(raw, "search.top")
    if top is not None and number("search.seeds", 1) == 1:
        yield fault("search.top", top, "says which points are run on more seeds; add search.seeds, or leave it out.")


def _constraint_faults(raw: Mapping[str, Any], has: Container[str], fault: ToFault) -> Iterable[Fault]:
    """Check that every constraint can be read, and names numbers that a trial will have."""
    constraints = get_path(raw, "search.constraints")
    inside = ("prune", "measure", "grow") if get_path(raw, "cycle.continuous") is not None else ()
    kinds = [kind for kind, part in MADE_BY.items() if (part is None or part in has) and kind not in inside]
    for text in constraints if isinstance(constraints, list | tuple) else ():
        if not isinstance(text, str):
            continue
        try:
            rule = expressions.parse(text)
        except ValueError as error:
            yield fault("search.constraints", text, _sentence(str(error)))
            continue
        if any(quote in rule.text for quote in "\"'"):
            yield fault("search.constraints", text, "compares numbers only; leave the quoted text out.")
        for name in sorted(rule.names):
            if message := _misnamed(name, kinds):
                yield fault("search.constraints", text, message)


def _misnamed(name: str, kinds: Sequence[str]) -> str | None:
    """Say what is wrong with a name in a constraint: it should be a number, of the result or of a kind of phase."""
    kind, _, number = name.rpartition(".")
    if kind in MADE_BY and kind not in kinds:
        return f"the cycle has no {kind} phase; it has {', '.join(kinds)}."
    if kind and kind not in kinds:
        return f"{name!r} names no phase: {known_names_hint(kind, kinds)}"
    return None if number in MEASURED else known_names_hint(number, MEASURED)


def _continuous_faults(raw: Mapping[str, Any], has: Container[str], number: Number, fault: ToFault) -> Iterable[Fault]:
    for part in ("prune", "learn"):
        if part not in has:
            yield fault("cycle.continuous", None, f"prunes while learning; add cycle.{part}.")
    if get_path(raw, "cycle.continuous.grow") and "grow" not in has:
        yield fault("cycle.continuous.grow", get_path(raw, "cycle.continuous.grow"), "needs cycle.grow to say how.")
    cycles, steps = number("cycle.cycles", 1), number("cycle.learn.steps", 0)
    if cycles > 1:
        yield fault("cycle.cycles", cycles, "with cycle.continuous there is one; its events take the place of cycles.")
    first, every = number("cycle.continuous.first", 0), number("cycle.continuous.every", 1)
    events = number("cycle.continuous.events", 1)
    last = first + (events - 1) * every
    if steps and last >= steps:
        yield fault("cycle.continuous.events", events, f"the last would come before step {last} of {steps}.")


def _form_faults(grow: Any, source: str) -> Iterable[Fault]:
    """Check that a growth's form of sensitivity is not blind under its init."""
    if not isinstance(grow, Mapping) or "form" not in _known_options("grow", grow.get("strategy")):
        return
    init, form = _name_in("cycle.grow", "init", grow), grow.get("form")
    names = [name for name in {*registry.available("init"), init} if isinstance(name, str) and _exists("init", name)]
    forms = {name: registry.load("init", name).forms for name in sorted(names)}
    known = {known for fitting in forms.values() for known in fitting}
    if init in names and form in known and form not in forms[init]:
        fitting = ", ".join(map(repr, forms[init]))
        others = ", ".join(repr(name) for name in forms if form in forms[name])
        message = f"is no measure of init {init!r}, which takes {fitting}; it fits {others}."
        yield Fault(file=source, key="cycle.grow.form", value=form, message=message)


def _exists(kind: str, name: str) -> bool:
    try:
        registry.load(kind, name)
    except registry.UnknownNameError:
        return False
    return True


def _load_space(raw: Mapping[str, Any], source: str) -> Space | None:
    """Load the search space that the job holds or names; a file is looked for as `search.space` says."""
    given = get_path(raw, "search.space")
    return load_space(given, source) if isinstance(given, str | Mapping) else None


def _space_faults(spec: JobSpec, space: Space, source: str) -> list[Fault]:
    """Try the space in the job, at every corner and at random points: what fails here would fail in a trial."""
    job = spec.resolved()
    faults = [
        space.fault(f"{p.path}.when", f"{UNKNOWN}: {known_names_hint(c.path, space.paths)}")
        for p in space.parameters for c in p.conditions
        if c.path not in space.paths and get_path(job, c.path) is None
    ]  # fmt: skip
    outside = [path for path in space.paths if path.split(".")[0] not in TRIAL_SECTIONS]
    faults += [space.fault(path, f"{OUTSIDE} {', '.join(TRIAL_SECTIONS)}.") for path in outside]
    faults += _rule_faults(space, job)
    if any(fault.key == REQUIRE for fault in faults):
        return faults
    inside = tuple(p for p in space.parameters if p.path not in outside)
    found: dict[tuple[str, str], Fault] = {}
    for values in _some_points(replace(space, parameters=inside), job):
        for fault in _faults_of(job, values, source):
            key = fault.key if fault.key in space.paths else _culprit(fault, job, values, source)
            message = fault.message if key == fault.key else f"makes {fault.key}: {fault.message}"
            found.setdefault((key, message), space.fault(key, message, values.get(key, fault.value)))
    return [*faults, *found.values()]


def _some_points(space: Space, job: Mapping[str, Any]) -> list[Values]:
    """Return points at every corner, and random ones."""
    generator = random.Random(0)
    corners = [values for _, values in space.corner_assignments(job)]
    return corners + [space.draw(job, generator) for _ in range(RANDOM_POINTS)]


def _rule_faults(space: Space, job: Mapping[str, Any]) -> list[Fault]:
    """Check that the rules name what there is, and that points can meet them: each alone, and all together."""
    known = {*space.paths, *(path for path in _leaves(job) if path.split(".")[0] in TRIAL_SECTIONS)}
    unknown = [(rule, name) for rule in space.rules for name in sorted(rule.names) if name not in known]
    if unknown:
        return [
            space.fault(REQUIRE, f"{UNKNOWN}: {known_names_hint(name, known)}", rule.text) for rule, name in unknown
        ]
    generator, free = random.Random(0), replace(space, rules=())
    points = [free.draw(job, generator) for _ in range(DRAWS)] if space.rules else []
    try:
        missed = [{rule.text for rule in space.missed(values, job)} for values in points]
    except ValueError as error:
        return [space.fault(REQUIRE, f"{error}.")]
    never = [rule.text for rule in space.rules if all(rule.text in at_point for at_point in missed)]
    if never:
        return [space.fault(REQUIRE, "no point of the space meets it.", rule) for rule in never]
    met = sum(not at_point for at_point in missed)
    if points and met < FEWEST:
        message = f"only {met} of {DRAWS} random points meet all of it, too few to search among; narrow the ranges."
        return [space.fault(REQUIRE, message)]
    return []


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Yield the dotted path of every setting of a job."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _sampler_faults(search: SearchSpec, space: Space, source: str) -> Iterable[Fault]:
    """Check that the sampler can do what this search asks of it: nothing is drawn in another way than it says."""
    asked = _asked_of_sampler(search, space)
    reason = next((asked[feature] for feature in _cannot(search.sampler.name) if feature in asked), None)
    if reason is not None:
        able = [name for name in registry.available("samplers") if not set(_cannot(name)) & set(asked)]
        message = f"cannot do this search: {reason}. These can: {', '.join(able)}."
        yield Fault(file=source, key="search.sampler.name", value=search.sampler.name, message=message)


def _cannot(sampler: str) -> tuple[str, ...]:
    return getattr(registry.load("samplers", sampler), "cannot", ())


def _asked_of_sampler(search: SearchSpec, space: Space) -> dict[str, str]:
    """Return what a search asks of its sampler that not every one can do, with the reason in words."""
    asked: dict[str, str] = {}
    for parameter in space.parameters:
        if parameter.form == "choice":
            asked.setdefault("choice", f"{parameter.path} is a choice, not a range")
        if parameter.conditions:
            asked.setdefault("condition", f"{parameter.path} exists under a condition only")
        if not parameter.quantised:
            asked.setdefault("continuous", f"{parameter.path} is continuous; give it a step or a number of values")
    if isinstance(search.minimize, tuple) and len(search.minimize) > 1:
        asked["objectives"] = f"search.minimize names {len(search.minimize)} objectives"
    if search.constraints:
        asked["constraints"] = "search.constraints would teach it nothing"
    return asked


def _faults_of(job: Mapping[str, Any], values: Mapping[str, Any], source: str) -> list[Fault]:
    try:
        _parse_spec(apply_values(job, values), source)
    except SpecError as error:
        return error.faults
    return []


def _culprit(fault: Fault, job: Mapping[str, Any], values: Mapping[str, Any], source: str) -> str:
    """Return the path whose value alone brings a fault about; where it takes several, the one most like the fault's."""
    for path, value in values.items():
        if fault.key in (other.key for other in _faults_of(job, {path: value}, source)):
            return path
    return max(values, key=lambda path: len(commonprefix([path, fault.key])))
