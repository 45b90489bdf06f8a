"""Checks of a job beyond the types of its settings; each yields all faults that it finds."""
