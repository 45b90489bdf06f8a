"""Upper bounds of the numbers in a job, each with its reason.

Each lies above what anybody has asked for, and below what a check, a plan or a record could no longer hold: a job with
too many zeros is refused at once, and does not fill the memory of whatever reads it. docs/jobs.md lists them.
"""

from __future__ import annotations

SEED = 2**53 - 1
"""The largest whole number that every reader of JSON keeps exactly, and records are JSON."""
STEPS = 10_000_000
"""Twelve days at a tenth of a second each. A record keeps a point of the curve for every tenth of them."""
RATE = 1e6
"""AdamW moves a weight by about the learning rate a step. Weights are below 1, so every loss diverges far below it."""
MULTIPLIER = 1_000.0
"""Factor on a new head's update: a hundred times the largest in use."""
DECAY = 1e3
"""A learning rate of 1e-3 times this decays a weight to 0 in one step."""
NORM = 1e6
"""No gradient reaches it, so it switches clipping off."""
CYCLES = 1_000
"""Cycles, rounds of a prune, events of a learn phase: each removes a head, and GPT-2 XL has 1,200."""
HEADS = 100_000
"""More than any published transformer has in all its layers (Llama 3 405B: 16,128)."""
LAYERS = 256
"""Twice as many as the deepest published transformers have; also applications of one module."""
WIDTH = 65_536
"""More than the widest feed-forward layer of a published transformer (Llama 3 405B: 53,248)."""
WINDOW = 131_072
"""Tokens that the longest models in common use read at once; attention takes time with its square."""
TOKENS = 10**13
"""More than the largest corpora of the hub hold."""
PROBES = 10_000
"""Head statistics take a forward and a backward pass each, and their errors fall with the square root alone."""
BATCH = 65_536
"""Examples of one optimizer step, or passes in it: with windows of 1,024, 16 times the batch of GPT-3."""
TRIALS = 100_000
"""Sampler, plan and table hold every trial in memory, and a sampler's time a trial grows with their number."""
SEEDS = 1_000
"""An interval over so many seeds is 30 times narrower than their spread."""
WORKERS = 1_024
"""Workers of one trial: they wait for each other at every step."""
CORES = 1_024
"""More than one machine has, and a worker is on one."""
GPUS = 64
"""More than one machine has, and a worker is on one."""
ATTEMPTS = 1_000
"""A trial that loses its workers so often has a fault of its own."""
SILENCE_S = 86_400.0
"""A day: whoever waits longer for a step or a checkpoint waits for nothing."""
HOURS = 87_600.0
"""Ten years."""
FLOPS = 1e30
"""Ten thousand times the largest training runs so far."""
DISK_GB = 1e6
"""A petabyte."""
PERPLEXITY = 1e6
"""A model that guesses has one as large as its vocabulary, below a million."""
NATS = 1e3
"""A loss above it is that of a model that has diverged."""
POPULATION = 10_000
"""Points of one generation of a sampler; a sweep of `TRIALS` has ten of them."""
CORNERS = 1_000
"""Choices of a search space, with three for a range: the job is checked at each, which takes a millisecond or two."""
RULES = 20
"""Rules of a space, or constraints: each is evaluated at every point that is drawn."""
PARAMETER_VALUES = 1_000_000
"""Values of one parameter: a range with more is continuous for every purpose, and says so by `continuous: true`."""
