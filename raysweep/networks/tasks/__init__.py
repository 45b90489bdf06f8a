"""One file per task: what a model learns, from an example's row of integers to inputs, labels and their loss."""
