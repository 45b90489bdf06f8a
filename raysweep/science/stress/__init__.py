"""Stress protocols: task alternation, targeted damage, and pruning for two texts that need different heads."""
