"""Name the files of the phase store's entries; see phase_store.py. Apart from it, so that to look takes no torch."""

OUTCOME = "outcome.json"
PROGRESS = "progress.json"
"""What a checkpoint inside a phase holds beside tensors."""
TENSORS = "tensors.safetensors"
MOMENTS = "moments.safetensors"
SLICES = "slices.safetensors"
