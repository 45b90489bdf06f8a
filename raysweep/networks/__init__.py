"""Transformers whose attention heads can be removed and grown. Imports no ray."""
