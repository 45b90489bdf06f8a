"""Parameter counts of pnn.md, sections 1 and 8.1: of networks on the meta device, so that none is filled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from raysweep.networks.pnn.config import PnnConfig
from raysweep.networks.pnn.network import PnnForMaskedLM

BERT = {"trunk": "layers", "num_steps": 12, "intermediate_size": 3072}
REFINER = {"attention": 2_362_368, "feed_forward": 3_148_544, "gate": 1_181_185}
NORM = 1_536


def network(**options: Any) -> Any:
    with torch.device("meta"):
        return PnnForMaskedLM(PnnConfig(**options))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 53_707_323),
        ({"tie_word_embeddings": True}, 30_266_427),
        ({"trunk": "hierarchical"}, 76_947_520),
        (BERT, 132_066_618),
        ({**BERT, "type_vocab_size": 2, "max_position_embeddings": 512}, 132_363_066),
        ({"num_steps": 9}, 53_707_323),
        ({"intermediate_size": 4096}, 56_855_099),
        ({"gate": "none"}, 53_707_323 - 1_181_185),
        ({"gate": "constant"}, 53_707_323 - 1_181_185),
        ({"gate": "scalar"}, 53_707_323 - 1_181_184),
        ({"final_norm": True}, 53_707_323 + NORM),
        ({"step_weights": "ponder"}, 53_707_323 + 769),
        ({"input_injection": True, "step_embedding": True, "random_depth": True}, 53_707_323),
        ({"init": "zero"}, 53_707_323),
    ],
    ids=str,
)
def test_a_network_has_the_parameters_counted_for_it(options: dict[str, Any], parameters: int) -> None:
    assert count(network(**options)) == parameters


def test_the_refiner_is_an_eighth_of_the_published_network() -> None:
    pnn = network()
    refiner = pnn.pnn.refiner
    assert {name: count(getattr(refiner, name)) for name in REFINER} == REFINER
    assert count(refiner) == sum(REFINER.values()) + 2 * NORM == 6_695_169
    assert count(pnn.pnn.embeddings) == 30_522 * 768 + 128 * 768 + NORM
    assert count(pnn.decoder) == 23_471_418


def test_bert_has_85_million_parameters_outside_of_its_vocabulary() -> None:
    assert count(network(**BERT).pnn.layers) == 85_054_464


@pytest.mark.parametrize(("steps", "own"), [(4, 4), (1, 1)])
def test_each_unshared_layer_has_its_own_weights_and_a_shared_one_is_there_once(steps: int, own: int) -> None:
    wide = {"intermediate_size": 3072, "num_steps": steps}
    assert count(network(trunk="layers", **wide).pnn.layers) == own * 7_087_872
    assert count(network(trunk="shared_layer", **wide).pnn.refiner) == 7_087_872


def test_bert_of_transformers_is_another_network_than_the_published_baseline() -> None:
    with torch.device("meta"):
        assert count(BertForMaskedLM(BertConfig())) == 109_514_298


def test_a_tied_head_predicts_with_the_embedding_itself() -> None:
    tied = PnnForMaskedLM(
        PnnConfig(vocab_size=11, hidden_size=6, num_attention_heads=2, intermediate_size=5, tie_word_embeddings=True)
    )
    assert tied.decoder.weight is tied.pnn.embeddings.tokens.weight
