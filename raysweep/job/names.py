"""List the names of data and tokenizers that a job may use."""

from __future__ import annotations

WORDPIECE = "wordpiece"
"""What a job calls it."""


EMBEDDED = "python-docs"


DIGITS = "digits"
"""Images, see trial/data/images."""


HUB: dict[str, tuple[str, str | None, str | None, str]] = {
    # name: (path on the hub, configuration, revision, column); script-only data sets: from the hub's parquet copy
    "tiny_shakespeare": ("karpathy/tiny_shakespeare", None, "refs/convert/parquet", "text"),
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1", None, "text"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1", None, "text"),
    "bookcorpus": ("bookcorpus/bookcorpus", None, "refs/convert/parquet", "text"),
    "c4": ("allenai/c4", "en", None, "text"),
}


GLUE = ("cola", "sst2", "mrpc", "qqp", "rte", "qnli", "mnli", "wnli")
"""Configurations of nyu-mll/glue, see trial/data/sentences. STS-B is left out, for its labels are no classes."""
