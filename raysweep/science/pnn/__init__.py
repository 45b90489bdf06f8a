"""Analyses of a Plastic Neural Network, and what they share: subject, traces, interventions, difficulty."""
