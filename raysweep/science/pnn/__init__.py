"""What analyses of a Plastic Neural Network share: the subject, its trace, interventions, tests, and what was found."""
