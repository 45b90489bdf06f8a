"""How a network bears stress: tasks that take turns, damage that is aimed, two tasks that need different heads."""
