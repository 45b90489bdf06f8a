"""PNN on images: the same refiner over patches and a class token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from raysweep.networks.models import pnn


@dataclass(frozen=True, kw_only=True)
class Family(pnn.Family):
    tasks: ClassVar[tuple[str, ...]] = ("image_classification",)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "pnn-vision-nano": {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 128,
                            "image_size": 8, "patch_size": 2, "num_channels": 1},
    }  # fmt: skip

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        """Return the configuration of a size; images have no vocabulary and no window, so both arguments are unused."""
        # Importing it registers our networks with transformers' automatic classes.
        import raysweep.networks.pnn.network  # noqa: F401
        from raysweep.networks.pnn.config import PnnVisionConfig

        return PnnVisionConfig(**self.sizes[size] | self.options(size))
