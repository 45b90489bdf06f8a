"""Write the code that loads an exported folder and runs its model. The code works as it stands, inside the folder."""

from __future__ import annotations

from typing import Any

import transformers

from raysweep.contracts import Facts, Task
from raysweep.trial.exports.manifest import Manifest

WAYS = {
    "compact": "Absent heads are gone from every tensor, so plain transformers refuses this folder:",
    "dense": "A plain transformers folder: absent heads have zero weights and compute nothing.",
    # Dense, but of a class that transformers does not have.
    "own": "Absent heads have zero weights and compute nothing. The network is one of raysweep's own:",
}


def usage(task: type[Task], facts: Facts, manifest: Manifest) -> str:
    """Return the usage section of a model card: how to load, a block of Python, and what goes in and out."""
    # Plain transformers can load a dense folder only if it has the network's class.
    plain = manifest.format == "dense" and hasattr(transformers, manifest.model_class)
    way = "own" if manifest.format == "dense" and not plain else manifest.format
    tokenizer = "" if task.reads == "images" else "AutoTokenizer"
    names = ", ".join(filter(None, [manifest.model_class if plain else "", tokenizer]))
    # An import that a kind of model does not need is left out, so that the code runs without unused names.
    lines = [
        *(["import torch"] if task.reads == "images" else []),
        *([] if plain else ["import raysweep"]),
        *([f"from transformers import {names}"] if names else []),
        "",
        f'model = {manifest.model_class}.from_pretrained(".")' if plain else 'model = raysweep.load_model(".")',
        *(['tokenizer = AutoTokenizer.from_pretrained(".")'] if tokenizer else []),
        *_asking(task, facts, manifest.data),
    ]
    return f"{WAYS[way]}\n\n```python\n" + "\n".join(lines) + f"\n```\n\n{_meaning(task, facts, manifest.data)}"


def _asking(task: type[Task], facts: Facts, data: dict[str, Any]) -> list[str]:
    """Return the lines of code that run a model on an example."""
    if task.reads == "images":
        # Pixels are scaled as the task scales them in training.
        return [
            f"pixels = torch.randint(0, {facts.brightest} + 1, {(2, *_shape(facts))})  # put your images here",
            f"logits = model(pixel_values=pixels * (2 / {facts.brightest}) - 1).logits",
            "print(logits.argmax(-1))  # the class of each",
        ]
    if task.reads == "sentences":
        second = ', ["It rained.", "She left."]' if facts.pairs else ""
        segments = ", token_type_ids=rows.token_type_ids" if facts.pairs else ""
        return [
            'sentences = ["A fine day.", "He left the house before anyone else was awake."]',
            f'cut = {{"padding": True, "truncation": True, "max_length": {data["seq_len"]}}}',
            f'rows = tokenizer(sentences{second}, **cut, return_token_type_ids={facts.pairs}, return_tensors="pt")',
            f"logits = model(rows.input_ids, attention_mask=rows.attention_mask{segments}).logits",
            "print(logits.argmax(-1))  # the class of each",
        ]
    # What is left reads windows of text: causal models continue it, others fill in what is masked.
    if task.causal:
        return [
            'prompt = tokenizer("The first", return_tensors="pt")',
            "tokens = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=8)",
            "print(tokenizer.decode(tokens[0]))",
        ]
    return [
        'rows = tokenizer(f"The first {tokenizer.mask_token} of all", return_tensors="pt")',
        "logits = model(rows.input_ids).logits",
        "print(tokenizer.decode(logits[rows.input_ids == tokenizer.mask_token_id].argmax(-1)))  # what is hidden",
    ]


def _meaning(task: type[Task], facts: Facts, data: dict[str, Any]) -> str:
    """Return the sentences that say what the model takes and what it predicts."""
    if task.reads == "images":
        channels, height, width = _shape(facts)
        return (
            f"Images have {channels} x {height} x {width} values (channels, height, width) from 0 to "
            f"{facts.brightest}, which are scaled to -1 to 1 as above. There are {facts.num_classes} classes, from 0."
        )
    if task.reads == "sentences":
        what = "Pairs of sentences" if facts.pairs else "Sentences"
        return (
            f"{what} are cut to {data['seq_len']} tokens. There are {facts.num_classes} classes, from 0, in the order "
            "of the names of the data's labels."
        )
    what = "predicts each next token" if task.causal else "predicts tokens that are hidden"
    return f"It {what}, and learned from windows of {data['seq_len']} tokens."


def _shape(facts: Facts) -> tuple[int, int, int]:
    assert facts.image_shape is not None, "images have a shape"
    return facts.image_shape
