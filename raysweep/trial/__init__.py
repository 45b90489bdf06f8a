"""Data, the training loop, phases and the phase store: torch, no Ray."""
