"""`raysweep analyze`: one file for each question."""
