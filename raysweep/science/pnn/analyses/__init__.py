"""Analyses of a Plastic Neural Network, one file each: the name of the file is that of the experiment."""
