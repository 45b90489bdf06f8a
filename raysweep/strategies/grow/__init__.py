"""One file per growth strategy: statistics in, the slots to grow out."""
