"""Held-out evaluation, and everything else a phase measures."""
