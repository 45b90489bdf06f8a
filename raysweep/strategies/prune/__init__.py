"""One file per pruning strategy: statistics in, importance scores out; the lowest scores go first."""
