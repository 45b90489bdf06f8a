"""The weights that stood in the slot right before it was last pruned: regrowth as restoration.

Other heads have adapted since, so the function changes. A shared key or value comes back as it was when the last of its
heads was pruned. Only weights are restored: optimizer moments begin as those of every new head. (Renda et al. 2020,
arXiv 2003.02389, section 3, rewind pruned networks to an earlier step of training instead.)
"""

from __future__ import annotations

from dataclasses import dataclass

from raysweep import contracts
from raysweep.contracts import NewSlice


@dataclass(frozen=True, kw_only=True)
class Initializer(contracts.Initializer):
    forms = ("gate",)
    needs = "stored"

    def __call__(self, new: NewSlice) -> None:
        # A slot that this trial never pruned has nothing stored: that is an error before this is called.
        assert new.given is not None
        new.weights.copy_(new.given)
