"""Silence transformers where its reports (missing weights, progress bars) repeat what is checked here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Switch off transformers' logging and progress bars inside the block."""
    from transformers.utils import logging

    # Both settings belong to the process and not to this call: they are restored as they were found.
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
