"""Experiments on trained models: their heads, what pruning preserves, stress, and Plastic Neural Networks."""
