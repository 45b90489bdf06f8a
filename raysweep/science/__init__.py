"""Questions put to a trained model: one experiment a file."""
