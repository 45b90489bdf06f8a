"""Head maps, gates, the probe, surgery on heads and the slice-wise optimizer."""
