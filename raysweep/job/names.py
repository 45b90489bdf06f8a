"""The names of data sets and tokenizers that a job can use besides those on the hub."""

from __future__ import annotations

WORDPIECE = "wordpiece"
"""The tokenizer of trial/data/wordpiece.py."""
EMBEDDED = "python-docs"
"""The text inside Python; see trial/data/corpora.py."""
DIGITS = "digits"
"""The images inside scikit-learn; see trial/data/images.py."""
HUB: dict[str, tuple[str, str | None, str | None, str]] = {
    # name: (path on the hub, configuration, revision, column). Data sets that are a script on the hub cannot be loaded
    # any more; the hub keeps a copy of each as Parquet files under the revision named here.
    "tiny_shakespeare": ("karpathy/tiny_shakespeare", None, "refs/convert/parquet", "text"),
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1", None, "text"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1", None, "text"),
    "bookcorpus": ("bookcorpus/bookcorpus", None, "refs/convert/parquet", "text"),
    "c4": ("allenai/c4", "en", None, "text"),
}
GLUE = ("cola", "sst2", "mrpc", "qqp", "rte", "qnli", "mnli", "wnli")
"""Configurations of nyu-mll/glue; see trial/data/sentences.py. STS-B is missing because its labels are not classes."""
