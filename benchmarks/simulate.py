"""Simulate 10,000 trials on 64 lanes with 3% of phases killed: time of the engine, and a check of its invariants.

    python -m benchmarks.simulate            # add --small to try it out

Sampler, stage tree, dispatcher, recorder and archive are the real ones; losses and times are artificial. One process.
"""

from __future__ import annotations

import sys

from benchmarks.reference import figure, write
from raysweep.job.jobfile import load_job
from raysweep.sweep.simulation.curves import Modelled
from raysweep.sweep.simulation.run import simulate
from raysweep.sweep.simulation.simulation import Adversity

JOB = "jobs/gpt2_heads.yaml"
LANES, KILL, STRAGGLERS, SEED = 64, 0.03, 0.1, 1
LIMIT_S = 300.0


def main(small: bool) -> None:
    trials = 200 if small else 10_000
    job = load_job(JOB, [f"search.trials={trials}", f"scale.lanes={LANES}", "search.sampler.name=random"])
    found = simulate(job, Modelled(), Adversity(kill=KILL, stragglers=STRAGGLERS, seed=SEED))
    figures = [
        figure(f"{trials} simulated trials, {LANES} lanes, {KILL:.0%} kills", [found.seconds],
               asked=f"<= {LIMIT_S:g}", unit="s", baseline="-"),
        figure("broken invariants", [float(len(found.broken))],
               asked="0", unit="", baseline=f"{len(found.invariants)} invariants, {found.kills} kills"),
        figure("steps executed", [found.steps / found.unshared_steps],
               asked="(measured)", unit="x", baseline="the steps of the same phases without sharing"),
    ]  # fmt: skip
    if not small:
        write("simulate", figures)
    assert not found.broken, found.broken
    assert found.seconds <= LIMIT_S, f"{found.seconds:.0f} s, asked {LIMIT_S:g}"


if __name__ == "__main__":
    main("--small" in sys.argv)
