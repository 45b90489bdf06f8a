"""A trial's model as a folder: taken from the phase store, written whole, read back exactly."""
