"""The names of the protocols, in their order: what a command offers without loading any of them."""

PROTOCOLS = ("alternation", "damage", "conflict")
