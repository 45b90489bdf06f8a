"""What may be wrong with a job, beyond the types of its settings: each check yields every fault that it finds."""
