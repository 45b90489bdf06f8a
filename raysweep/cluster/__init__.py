"""Ray: lanes that train, and the sweep that feeds them."""
