"""The training loop, and the phases that train."""
