"""The phase store: outcomes of phases on disk, by key."""
