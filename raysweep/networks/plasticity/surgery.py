"""Find the slices that come and go with heads, copy them, and arrange them for the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch

from raysweep.contracts import AttentionSite, HeadSlice, Role, Slot
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel


def absent_slices(sites: Sequence[AttentionSite], head_map: HeadMap) -> list[HeadSlice]:
    """Return every slice that only absent heads use: a shared key or value stays while one of its users is present."""
    return [part for part, used in _used_slices(sites, head_map) if not used]


def present_slices(sites: Sequence[AttentionSite], head_map: HeadMap) -> list[HeadSlice]:
    """Return every slice that a present head uses."""
    return [part for part, used in _used_slices(sites, head_map) if used]


def grown_slices(sites: Sequence[AttentionSite], before: HeadMap, slots: Iterable[Slot]) -> list[HeadSlice]:
    """Return the slices that come alive when `slots` grow into `before`."""
    # A difference, and not the slots' own slices: a shared key or value comes alive only if its whole group was
    # absent.
    after = set(absent_slices(sites, before.with_grown(slots, cycle=0)))
    return [part for part in absent_slices(sites, before) if part not in after]


def view_of(parameters: dict[str, torch.nn.Parameter], part: HeadSlice) -> torch.Tensor:
    """Return a view of a slice; writing to it changes the parameter, unseen by autograd."""
    return parameters[part.parameter].data.narrow(part.dim, part.start, part.length)


def slice_name(part: HeadSlice) -> str:
    """Return a slice as a string; `slice_named` is the inverse."""
    return f"{part.parameter}/{part.role}/{part.dim}/{part.start}/{part.length}"


def slice_named(name: str) -> HeadSlice:
    """Return the slice that `slice_name` wrote."""
    # Split from the right: whatever characters the parameter's name holds, four parts follow it.
    parameter, role, dim, start, length = name.rsplit("/", 4)
    return HeadSlice(
        parameter=parameter, role=cast(Role, role), dim=int(dim), start=int(start), length=int(length)
    )  # fmt: skip


def snapshot(model: PlasticModel, slices: Sequence[HeadSlice]) -> list[torch.Tensor]:
    """Copy the weights of slices."""
    parameters = dict(model.network.named_parameters())
    # Clones, because the views themselves are usually overwritten next.
    return [view_of(parameters, part).clone() for part in slices]


def write_back(model: PlasticModel, slices: Sequence[HeadSlice], saved: Sequence[torch.Tensor]) -> None:
    """Write the weights that `snapshot` copied back into their slices."""
    parameters = dict(model.network.named_parameters())
    for part, weights in zip(slices, saved, strict=True):
        view_of(parameters, part).copy_(weights)


def joined(slices: Iterable[HeadSlice]) -> list[HeadSlice]:
    """Join touching slices of one parameter into longer ones, whatever their roles: fewer tensors to work on."""
    runs: list[HeadSlice] = []
    for part in sorted(slices, key=lambda part: (part.parameter, part.start)):
        last = runs[-1] if runs else None
        # A parameter holds heads along one dimension, so start and length alone decide whether slices touch.
        assert last is None or last.parameter != part.parameter or last.dim == part.dim, f"{part} is sliced two ways"
        if last is not None and (last.parameter, last.start + last.length) == (part.parameter, part.start):
            runs[-1] = replace(last, length=last.length + part.length)
        else:
            runs.append(part)
    return runs


def equally_spaced(slices: Sequence[HeadSlice]) -> list[list[HeadSlice]]:
    """Group neighbouring slices of one parameter, length and distance: each group is a single strided view.

    A fused query-key-value weight has three slices for a head, as far apart as the layer is wide.
    """
    groups: list[list[HeadSlice]] = []
    for part in slices:
        group = groups[-1] if groups else []
        alike = bool(group) and (group[0].parameter, group[0].length) == (part.parameter, part.length)
        # The second slice sets the distance of the group; every later one must keep it.
        if alike and (len(group) == 1 or part.start - group[-1].start == group[1].start - group[0].start):
            group.append(part)
        else:
            groups.append([part])
    return groups


def _used_slices(sites: Sequence[AttentionSite], head_map: HeadMap) -> Iterator[tuple[HeadSlice, bool]]:
    for site in sites:
        row = head_map.present[site.layer]
        for head in range(site.num_heads):
            yield from ((part, bool(row[head])) for part in site.head_slices(head))
        # Under grouped queries, keys and values belong to no single head: they are in use while any head of the
        # group is.
        if site.grouped:
            for group in range(site.num_key_value_heads):
                used = any(row[head] for head in range(site.num_heads) if site.group_of(head) == group)
                yield from ((part, used) for part in site.group_slices(group))
