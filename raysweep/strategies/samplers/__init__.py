"""One file per Optuna sampler: name and options in, sampler out."""
