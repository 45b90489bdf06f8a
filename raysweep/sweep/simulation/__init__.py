"""A sweep in virtual time: the real engine on modelled or recorded curves, with workers killed and lanes slow."""
