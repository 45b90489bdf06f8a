"""What is asked of a model outside of a sweep."""
