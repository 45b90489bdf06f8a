"""What a trial will take before it runs: time, memory, disk, and whether its phases are possible."""
