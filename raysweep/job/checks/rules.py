"""Check the rules between the settings of a job; each only where its own settings are well-formed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from raysweep.errors import Fault, known_names_hint
from raysweep.job import bounds, expressions
from raysweep.job.checks.inference import infer_faults
from raysweep.job.checks.sections import Number, ToFault, sentence
from raysweep.job.checks.strategies import form_faults
from raysweep.job.paths import get_path
from raysweep.job.search import MEASURED

MADE_BY = {
    "baseline": None,
    "prune": "prune",
    "measure": "prune",
    "grow": "grow",
    "learn": "learn",
    "infer": "infer",
}
"""The section of a cycle that brings each kind of phase. Every trial has a baseline, which may be of no steps."""


def cross_faults(raw: Mapping[str, Any], source: str) -> Iterable[Fault]:
    """Yield a fault for each rule between settings that a job breaks."""

    def number(path: str, default: int) -> int:
        # A setting that is malformed has a fault of its own already; its default makes the rules hold that read it.
        value = get_path(raw, path)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default

    def fault(key: str, value: Any, message: str) -> Fault:
        return Fault(file=source, key=key, value=value, message=message)

    cycle = get_path(raw, "cycle")
    if isinstance(cycle, Mapping) and cycle.get("grow") is not None and cycle.get("prune") is None:
        yield fault("cycle.grow", None, "nothing to grow back without pruning; add cycle.prune or remove cycle.grow.")
    yield from _cycle_faults(raw, number, fault)
    yield from form_faults(cycle.get("grow") if isinstance(cycle, Mapping) else None, source)
    yield from _size_faults(number, fault)
    yield from _streaming_faults(raw, fault)


def _size_faults(number: Number, fault: ToFault) -> Iterable[Fault]:
    """Check that a batch can be divided, an evaluation holds a window, and schedules end within their phase."""
    # Every worker takes an equal part of a batch, and every accumulation step an equal part of that.
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
    # A head that is still warming up when its phase ends would be measured with a gate that is not open.
    steps, warmup = number("cycle.learn.steps", 0), number("cycle.learn.gate_warmup_steps", 0)
    if steps and warmup > steps:
        yield fault("cycle.learn.gate_warmup_steps", warmup, f"must be at most cycle.learn.steps = {steps}.")
    decay = number("cycle.learn.multiplier_decay_steps", 0)
    if steps and decay > steps:
        yield fault("cycle.learn.multiplier_decay_steps", decay, f"must be at most cycle.learn.steps = {steps}.")


def _streaming_faults(raw: Mapping[str, Any], fault: ToFault) -> Iterable[Fault]:
    """Check that a streamed corpus says how much of it to read, and no other corpus does."""
    streamed = get_path(raw, "data.name") == "c4"
    if streamed != (get_path(raw, "data.max_tokens") is not None):
        way = (
            "c4 is streamed: set the number of training tokens to read."
            if streamed
            else "only for streamed corpora (c4); leave it out."
        )
        yield fault("data.max_tokens", get_path(raw, "data.max_tokens"), way)


def _cycle_faults(raw: Mapping[str, Any], number: Number, fault: ToFault) -> Iterable[Fault]:
    """Check what cycles, halting rules, events, control arms, constraints and the search need of the cycle."""
    parts = ("baseline", "prune", "grow", "learn", "infer")
    has = {part for part in parts if get_path(raw, f"cycle.{part}") is not None}
    cycles = number("cycle.cycles", 1)
    # Levels grow with each cycle, and the last one must leave heads.
    level, step = get_path(raw, "cycle.prune.level"), get_path(raw, "cycle.level_escalation")
    if step and isinstance(level, int | float) and isinstance(step, int | float) and level + (cycles - 1) * step >= 1:
        yield fault("cycle.level_escalation", step, f"the level of cycle {cycles} would not be below 1.")
    for rule in ("regression", "plateau"):
        if get_path(raw, f"cycle.{rule}") is not None and "learn" not in has:
            yield fault(f"cycle.{rule}", None, "is checked after learning; add cycle.learn.")
    # A plateau compares the last `patience` cycles with those before, and after the last cycle it ends nothing.
    patience = number("cycle.plateau.patience", 2)
    if get_path(raw, "cycle.plateau") is not None and patience >= cycles:
        yield fault("cycle.plateau.patience", patience, f"could never fire: must be below cycle.cycles = {cycles}.")
    if get_path(raw, "cycle.continuous") is not None:
        yield from _continuous_faults(raw, has, number, fault)
    if "infer" in has:
        yield from infer_faults(raw, number, fault)
    yield from _control_faults(raw, has, fault)
    yield from _constraint_faults(raw, has, fault)
    yield from _goal_faults(raw, number, fault)
    # Without evaluations inside training a stopping rule would hear of a trial only when it has ended.
    rule = get_path(raw, "search.stopping.name")
    if rule not in (None, "none") and get_path(raw, "training.evaluate_every") is None:
        way = "compares held-out losses inside training; set training.evaluate_every to the steps between them."
        yield fault("search.stopping.name", rule, way)
    trials = number("search.trials", 1)
    if get_path(raw, "search.space") is None and trials > 1:
        yield fault("search.trials", trials, "all would be equal without search.space; add one, or leave trials out.")


def _control_faults(raw: Mapping[str, Any], has: Container[str], fault: ToFault) -> Iterable[Fault]:
    """Check that each control arm differs from the trial itself."""
    arms = get_path(raw, "search.controls")
    # Anything but text is a fault of the spec.
    for arm in (each for each in arms if isinstance(each, str)) if isinstance(arms, list | tuple) else ():
        needed = {"rewind": "grow", "no_regrow": "grow", "random_random": "prune", "dense": "prune"}.get(arm)
        if needed is not None and needed not in has:
            yield fault("search.controls", arm, f"would be the trial itself without cycle.{needed}; leave it out.")
        if arm == "from_scratch_small" and "baseline" not in has and "learn" not in has:
            yield fault("search.controls", arm, "has no steps to train for; add cycle.baseline or cycle.learn.")


def _goal_faults(raw: Mapping[str, Any], number: Number, fault: ToFault) -> Iterable[Fault]:
    """Check the objectives of a search, and that its setting of seeds has an effect."""
    minimize = get_path(raw, "search.minimize")
    if isinstance(minimize, list | tuple) and (not minimize or len(set(map(str, minimize))) < len(minimize)):
        yield fault("search.minimize", minimize, "name at least one objective, and none twice.")
    top = get_path(raw, "search.top")
    if top is not None and number("search.seeds", 1) == 1:
        yield fault("search.top", top, "chooses the points to run on more seeds; add search.seeds, or leave it out.")


def _constraint_faults(raw: Mapping[str, Any], has: Container[str], fault: ToFault) -> Iterable[Fault]:
    """Check that every constraint can be parsed, and names numbers that a trial will have."""
    constraints = get_path(raw, "search.constraints")
    # Inside a continuous learn phase these leave events, not phase records that a constraint could read.
    inside = ("prune", "measure", "grow") if get_path(raw, "cycle.continuous") is not None else ()
    kinds = [kind for kind, part in MADE_BY.items() if (part is None or part in has) and kind not in inside]
    for text in constraints if isinstance(constraints, list | tuple) else ():
        # The spec has made this a fault already.
        if not isinstance(text, str):
            continue
        try:
            rule = expressions.parse(text)
        except ValueError as error:
            yield fault("search.constraints", text, sentence(str(error)))
            continue
        if any(quote in rule.text for quote in "\"'"):
            yield fault("search.constraints", text, "compares numbers only; leave the quoted text out.")
        for name in sorted(rule.names):
            if message := _misnamed(name, kinds):
                yield fault("search.constraints", text, message)


def _misnamed(name: str, kinds: Sequence[str]) -> str | None:
    """Return what is wrong with a name in a constraint, or None: `loss` or `baseline.loss` are right."""
    kind, _, number = name.rpartition(".")
    # A phase that other cycles have gets another message than a word that is no phase.
    if kind in MADE_BY and kind not in kinds:
        return f"the cycle has no {kind} phase; it has {', '.join(kinds)}."
    if kind and kind not in kinds:
        return f"{name!r} names no phase: {known_names_hint(kind, kinds)}"
    return None if number in MEASURED else known_names_hint(number, MEASURED)


def _continuous_faults(raw: Mapping[str, Any], has: Container[str], number: Number, fault: ToFault) -> Iterable[Fault]:
    """Check what events inside the learn phase need, and that all of them come before its end."""
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
    # An event takes place before its step, and there is no step after the last one.
    last = first + (events - 1) * every
    possible = -(-(steps - first) // every)
    if get_path(raw, "cycle.continuous.events") is None and possible > bounds.CYCLES:
        way = f"makes {possible:,} events; a learn phase has at most {bounds.CYCLES:,}, so take more steps between two."
        yield fault("cycle.continuous.every", every, way)
    if steps and first >= steps:
        yield fault(
            "cycle.continuous.first", first, f"no event would happen: must be below cycle.learn.steps = {steps}."
        )
    elif steps and last >= steps:
        yield fault("cycle.continuous.events", events, f"the last would come before step {last} of {steps}.")
