"""Draw pictures as PNG."""
