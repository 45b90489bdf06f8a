"""Networks, batches and exit rules for the tests of tokens that leave a recurrent network."""

from __future__ import annotations

from typing import Any

import torch
from support.helpers import VOCABULARY

from raysweep.contracts import Batch
from raysweep.job import registry
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.networks.pnn.config import PnnConfig
from raysweep.networks.pnn.network import PnnForMaskedLM, PnnPredictor

LENGTH = 7
SIZES: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": VOCABULARY,
                         "max_position_embeddings": 11, "num_steps": 3, "block_widths": (8, 5)}  # fmt: skip
SHARED = ("refiner", "hierarchical", "shared_layer")
VARIANTS: dict[str, dict[str, Any]] = {
    **{trunk: {"trunk": trunk} for trunk in SHARED},
    "injection": {"input_injection": True, "final_norm": True},
    "step_embedding": {"step_embedding": True},
    "step_heads": {"step_head_mask": [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]},
    "no_gate": {"gate": "none"},
}
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "delta_norm": {"threshold": 0.62},
    "patience": {"patience": 1},
    "kl": {"divergence": 0.03},
    "max_probability": {"probability": 0.2},
    "learned": {"quantile": 0.6},
    "random": {"mean_steps": 2.4},
}


def network_of(kind: type[PnnPredictor] = PnnForMaskedLM, config: type[PnnConfig] = PnnConfig, **options: Any) -> Any:
    """Return a network whose every parameter is clearly not zero, in fp64."""
    made = config(**SIZES | {"step_weights": "ponder"} | options)
    network = kind._from_config(made, attn_implementation="sdpa", dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
            parameter.copy_(drawn + 1.0 if "norm" in name and name.endswith("weight") else drawn)
    return network


def tokens_of(rows: int, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch_of(inputs: torch.Tensor, lengths: list[int] | None = None) -> Batch:
    """Return a masked-LM batch: labels at two tokens of each example, all within its length."""
    lengths = lengths or [inputs.shape[1]] * len(inputs)
    mask = (torch.arange(inputs.shape[1]) < torch.tensor(lengths)[:, None]).long()
    labels = torch.full_like(inputs, NO_LABEL)
    for row, length in enumerate(lengths):
        labels[row, [row % length, (2 * row + 3) % length]] = 1
    labelled = (labels.flatten() != NO_LABEL).nonzero().flatten()
    return Batch(inputs=inputs, labels=labels, labelled=labelled, attention_mask=None if mask.all() else mask)


def rule_of(name: str, **options: Any) -> Any:
    return registry.build("exits", name, RULES[name] | options)
