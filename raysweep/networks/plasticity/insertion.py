"""Insert new heads: give their slices first weights by an initializer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from raysweep.contracts import Array, AttentionSite, HeadSlice, Initializer, NewSlice, Slot
from raysweep.errors import TrialError
from raysweep.job.plan import derived_seed
from raysweep.networks.plasticity.donors import donors_of
from raysweep.networks.plasticity.growth_probe import Directions, block_of, mean_row_norm
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.surgery import grown_slices, snapshot, view_of, write_back


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What initializers may need besides the model itself."""

    taylor: Array | None = None
    """[layers][heads]: Taylor scores, by which donors are chosen."""
    stored: Mapping[HeadSlice, torch.Tensor] = field(default_factory=dict)
    """Weights of slices just before they were last removed, for `rewind`."""
    directions: Sequence[Directions] = ()
    """One for each layer, for `gradmax`; see growth_probe."""


def insert(
    model: PlasticModel, before: HeadMap, slots: Sequence[Slot], initializer: Initializer, key: str, sources: Sources
) -> list[HeadSlice]:
    """Initialise the slices that come alive when `slots` grow into `before`.

    Returns:
        All slices that changed: the new ones, and the output weights of donors.

    Raises:
        TrialError: what the initializer needs is not there.
    """
    parts = grown_slices(model.sites, before, slots)
    donated = _donated(model, before, slots, sources) if initializer.needs == "donor" else {}
    given = _given(model, before, parts, donated, initializer, sources)
    parameters = dict(model.network.named_parameters())
    with torch.no_grad():
        for part in parts:
            initializer(
                NewSlice(
                    role=part.role,
                    weights=head_first(view_of(parameters, part), part),
                    std=model.initializer_range,
                    # A generator for each slice, seeded by its place: the draw depends neither on the global
                    # generator nor on which other heads grow with it.
                    generator=torch.Generator().manual_seed(derived_seed(key, "init", part.parameter, part.start)),
                    given=given.get(part),
                )
            )
    # A donor may be split several times; it is listed once. Of a donor only output weights change.
    return parts + list(dict.fromkeys(donor for part, donor in donated.items() if part.role == "output"))


def propose(model: PlasticModel, head_map: HeadMap, initializer: Initializer, key: str, sources: Sources) -> None:
    """Fill every absent head as if it grew alone, so that the probe can score it; donors keep their weights."""
    for layer, head in np.argwhere(~head_map.present):
        slot = (int(layer), int(head))
        donated = _donated(model, head_map, [slot], sources) if initializer.needs == "donor" else {}
        donors = list(donated.values())
        # A split halves the donor's output weights. They are restored, or the next proposal would see a changed
        # donor.
        whole = snapshot(model, donors)
        insert(model, head_map, [slot], initializer, key, sources)
        write_back(model, donors, whole)


def head_first(tensor: torch.Tensor, part: HeadSlice) -> torch.Tensor:
    """View a slice with its head's dimension first: (head_dim, width) or (head_dim,), whatever the layout."""
    # Still a view: what an initializer writes lands in the parameter.
    return tensor.movedim(part.dim, 0)


def _given(
    model: PlasticModel,
    before: HeadMap,
    parts: Sequence[HeadSlice],
    donated: Mapping[HeadSlice, HeadSlice],
    initializer: Initializer,
    sources: Sources,
) -> dict[HeadSlice, torch.Tensor]:
    """Return what the initializer needs for each new slice, with the head's dimension first."""
    parameters = dict(model.network.named_parameters())
    if initializer.needs == "donor":
        return {part: head_first(view_of(parameters, donated[part]), donated[part]) for part in parts}
    if initializer.needs == "stored":
        return {part: head_first(_stored(sources, part), part) for part in parts}
    if initializer.needs == "directions":
        return _scaled_directions(model, before, parts, sources)
    return {}


def _stored(sources: Sources, part: HeadSlice) -> torch.Tensor:
    if part not in sources.stored:
        raise TrialError(
            f"no weights are stored for {part.parameter} [{part.start}:{part.start + part.length}]: rewind brings back "
            "what a prune of this trial removed. Use another cycle.grow.init."
        )
    return sources.stored[part]


def _donated(
    model: PlasticModel, before: HeadMap, slots: Sequence[Slot], sources: Sources
) -> dict[HeadSlice, HeadSlice]:
    """Return the donor's slice for each slice of new heads."""
    assert sources.taylor is not None
    pairs: dict[HeadSlice, HeadSlice] = {}
    for (layer, head), (_, donor) in donors_of(model.sites, before, slots, sources.taylor).items():
        site = model.sites[layer]
        pairs.update(zip(_all_slices(site, head), _all_slices(site, donor), strict=True))
    return pairs


def _all_slices(site: AttentionSite, head: int) -> list[HeadSlice]:
    # The order is the same for every head of a site, so that `zip` pairs a new head's slices with its donor's.
    shared = site.group_slices(site.group_of(head)) if site.grouped else []
    return site.head_slices(head) + shared


def _scaled_directions(
    model: PlasticModel, before: HeadMap, parts: Sequence[HeadSlice], sources: Sources
) -> dict[HeadSlice, torch.Tensor]:
    """Return block j of a layer's directions for its j-th new value, scaled to the norm of present values."""
    parameters = dict(model.network.named_parameters())
    given: dict[HeadSlice, torch.Tensor] = {}
    for site, directions in zip(model.sites, sources.directions, strict=True):
        # Value biases have no directions; they are left out of the map.
        weights = {name for name, _, _ in site.value if parameters[name].dim() == 2}
        new = [part for part in parts if part.role == "value" and part.parameter in weights]
        for block, part in enumerate(new):
            given[part] = block_of(directions, block, site) * mean_row_norm(model, site, before)
    return given
