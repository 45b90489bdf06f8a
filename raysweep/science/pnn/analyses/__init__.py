"""Analyses of a Plastic Neural Network, one file each; the file has the name of the experiment."""
