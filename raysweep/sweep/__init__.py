"""What decides in a sweep: what runs next, where, and what stops. Knows neither Ray nor torch."""
