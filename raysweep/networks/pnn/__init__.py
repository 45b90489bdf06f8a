"""Plastic Neural Networks: one refiner applied again and again, and the stacks of layers that it is compared with."""
