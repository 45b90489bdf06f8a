"""TensorBoard event files, and the server that shows them."""
