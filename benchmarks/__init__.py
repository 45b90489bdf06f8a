"""Benchmarks: speed and quality against a baseline in the same run; figures go to results/reference/."""
