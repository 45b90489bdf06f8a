"""Everything a job may choose by name: one folder for each kind, one file for each strategy."""
