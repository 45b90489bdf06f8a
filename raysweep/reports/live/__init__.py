"""Progress of a running sweep on stderr."""
