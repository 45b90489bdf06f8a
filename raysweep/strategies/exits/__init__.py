"""When a token leaves a recurrent network: one rule a file, see contracts.Exit."""
