"""One file per way to initialise a new head."""
