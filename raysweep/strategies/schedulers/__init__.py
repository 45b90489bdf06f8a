"""One file per rule of early stopping: reports in, decisions out."""
