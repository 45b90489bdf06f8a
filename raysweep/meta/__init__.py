"""What past sweeps teach: the effects of strategies over many sweeps."""
