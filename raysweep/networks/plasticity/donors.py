"""Choose the present head that each new head is split from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raysweep.contracts import Array, AttentionSite, Slot
from raysweep.errors import TrialError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.ranking import rounded


def donors_of(
    sites: Sequence[AttentionSite], before: HeadMap, slots: Sequence[Slot], taylor: Array
) -> dict[Slot, Slot]:
    """Return the donor of each new head: of the heads it may copy, the least used one, then the largest Taylor score.

    A new head copies a head of its own key/value group while that lives. A group that was absent copies one group
    whole, so all its new heads have their donors there. Ties go to the first head.

    Args:
        before: the map into which the slots grow.
        taylor: [layers][heads].

    Raises:
        TrialError: a layer has no present head to split.
    """
    donors: dict[Slot, Slot] = {}
    uses: Counter[Slot] = Counter()
    copied: dict[Slot, int] = {}
    for layer, head in sorted(slots):
        site, present = sites[layer], before.present[layer]
        group = site.group_of(head)
        heads = [other for other in range(site.num_heads) if present[other]]
        # In a living group keys and values are shared already, so only a head of the same group is a copy of its donor.
        # In a group that was absent they are copied too: from one source, as there is only one key and value to fill.
        lives = any(site.group_of(other) == group for other in heads)
        source = group if lives else copied.get((layer, group))
        candidates = [(layer, other) for other in heads if source is None or site.group_of(other) == source]
        if not candidates:
            raise TrialError(f"layer {layer} has no present head to split; use another cycle.grow.init.")
        # The least used donor first: a split halves output weights, and none should be halved more often than needed.
        # Scores are rounded (see ranking.DIGITS), so that all ranks and world sizes choose alike.
        donor = min(candidates, key=lambda slot: (uses[slot], -rounded(float(taylor[slot])), slot))
        copied[layer, group] = site.group_of(donor[1])
        uses[donor] += 1
        donors[layer, head] = donor
    return donors
