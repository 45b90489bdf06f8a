"""Check that tokens can leave the network of a job step by step, as its infer section asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raysweep.errors import Fault
from raysweep.job import registry
from raysweep.job.checks.sections import Number, ToFault, name_in
from raysweep.job.paths import get_path


def infer_faults(raw: Mapping[str, Any], number: Number, fault: ToFault) -> Iterable[Fault]:
    """Check the steps after which tokens leave, and that every trial reaches this phase."""
    steps, fewest = number("cycle.infer.steps", 1), number("cycle.infer.min_steps", 1)
    if fewest > steps:
        yield fault("cycle.infer.min_steps", fewest, f"must be at most cycle.infer.steps = {steps}.")
    # An option of the exit `random`; what it may be depends on two settings beside it, which the exit does not see.
    mean = get_path(raw, "cycle.infer.mean_steps")
    if isinstance(mean, int | float) and not fewest <= mean <= steps:
        way = f"must lie between cycle.infer.min_steps and steps, {fewest} and {steps}."
        yield fault("cycle.infer.mean_steps", mean, way)
    # Both rules end a trial early, and infer is the phase whose result the search compares.
    for rule in ("regression", "plateau"):
        if get_path(raw, f"cycle.{rule}") is not None:
            yield fault(f"cycle.{rule}", None, "would end a trial before cycle.infer; leave one of them out.")
    yield from _model_faults(raw, fault)


def _model_faults(raw: Mapping[str, Any], fault: ToFault) -> Iterable[Fault]:
    """Check that a from-scratch model applies one module several times, and trains what the exit reads."""
    # What a pretrained network is, only its configuration says, which is read before the sweep starts.
    model = get_path(raw, "model")
    name = model.get("name") if isinstance(model, Mapping) else None
    if not isinstance(name, str) or name not in registry.scratch_sizes():
        return
    family = registry.load("models", registry.scratch_sizes()[name])
    if not family.recurrent_trunks:
        way = "applies no layer twice, so no token can leave between steps; take a PNN (`raysweep list models`)."
        yield fault("cycle.infer", None, f"model.name = {name!r} {way}")
        return
    trunk, weights = (model.get(key, getattr(family, key)) for key in ("trunk", "step_weights"))
    if trunk not in family.recurrent_trunks:
        others = ", ".join(family.recurrent_trunks)
        yield fault("model.trunk", trunk, f"has no step after which tokens of cycle.infer could leave; take {others}.")
    infer = get_path(raw, "cycle.infer")
    # The exit head takes part in the loss of `ponder` alone; otherwise it would keep its random first weights.
    exit_name = name_in("cycle.infer", "exit", infer) if isinstance(infer, Mapping) else None
    if _reads_exit_head(exit_name) and weights != "ponder":
        way = "reads an exit head, which only model.step_weights: ponder trains; set that, or take another exit."
        yield fault("cycle.infer.exit", exit_name, way)


def _reads_exit_head(name: Any) -> bool:
    """Return whether an exit reads the exit head; False where there is no such exit."""
    try:
        return isinstance(name, str) and registry.attribute_of("exits", name, "reads") == "exit_head"
    except registry.UnknownNameError:
        # strategies.py has made this a fault already.
        return False
