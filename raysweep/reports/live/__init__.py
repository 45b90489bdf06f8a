"""The rows and the progress line of a running sweep."""
