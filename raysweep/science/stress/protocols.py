"""Names of the stress protocols in their order, for a command that is to list them without importing torch."""

PROTOCOLS = ("alternation", "damage", "conflict")
