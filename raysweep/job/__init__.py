"""Everything a job may ask for: its fields, search space, checks and plan. Imports neither torch nor ray."""
