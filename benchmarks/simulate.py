"""Simulate 10,000 trials on 512 lanes with 3% of phases killed, drawn at random and by TPE: time, invariants, growth.

    python -m benchmarks.simulate            # add --small to try it out

Sampler, stage tree, dispatcher, recorder and archive are the real ones; losses and times are artificial. One process.
Times are of its processor: the wall time of a machine that others use, too, says nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.reference import Figure, figure, save, show
from raysweep.job.jobfile import load_job
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.simulation.curves import Modelled
from raysweep.sweep.simulation.run import Findings, simulate
from raysweep.sweep.simulation.simulation import Adversity

JOB = "jobs/gpt2_heads.yaml"
SAMPLERS = ("random", "tpe")
LANES, KILL, STRAGGLERS, SEED = 512, 0.03, 0.1, 1
LIMIT_S, GROWTH, EVENT_MS = 300.0, 1.3, 1.0
CALLS = ("submit", "assignment", "ask", "post", "finish", "release", "settle")
"""What a sweep and its lanes call of the dispatcher."""


def main(small: bool) -> None:
    many, few = (600, 300) if small else (10_000, 1000)
    figures: list[Figure] = []
    for sampler in SAMPLERS:
        figures += of_sampler(sampler, few, many)
        if not small:
            # After each: a run takes minutes.
            save("simulate", figures)
    figures.append(of_events(64 if small else 1000))
    if not small:
        save("simulate", figures)
    for one in figures:
        show(one)


def of_sampler(sampler: str, few: int, many: int) -> list[Figure]:
    """Return the figures of a long simulation, and of a short one to compare it with."""
    _, short = timed(sampler, few, LANES)
    found, long = timed(sampler, many, LANES)
    assert not found.broken, found.broken
    window = few // 2
    late, early = (long[at] - long[at - window] for at in (many, few + window))
    about = f"{sampler}: {many} simulated trials, {LANES} lanes, {KILL:.0%} kills"
    return [
        figure(f"{about}: processor time", [long[many]], asked=f"<= {LIMIT_S:g}", unit="s",
               baseline=f"wall time {found.seconds:.0f} s"),
        figure(f"{about}: broken invariants", [float(len(found.broken))], asked="0", unit="",
               baseline=f"{len(found.invariants)} invariants, {found.kills} kills"),
        figure(f"{about}: steps executed", [found.steps / found.unshared_steps], asked="(measured)", unit="x",
               baseline="the steps of the same phases without sharing"),
        figure(f"{sampler}: time of the last {window} trials of {many}", [late / early],
               asked=f"<= {GROWTH:g}", unit="x",
               baseline=f"of the {window} behind trial {few}, {1000 * early / window:.1f} ms each"),
        figure(f"{sampler}: time of a trial in a sweep of {many}", [long[many] / many / (short[few] / few)],
               asked=f"<= {GROWTH:g}", unit="x",
               baseline=f"of {few}, {1000 * short[few] / few:.1f} ms; its first {LANES} know no result"),
    ]  # fmt: skip


def timed(sampler: str, trials: int, lanes: int) -> tuple[Findings, dict[int, float]]:
    """Simulate a sweep; return also the processor time at the end of each trial, and with the checks at the last."""
    job = load_job(JOB, [f"search.trials={trials}", f"scale.lanes={lanes}", f"search.sampler.name={sampler}"])
    began, ends = time.process_time(), dict[int, float]()

    def ended(number: int, seconds: float) -> None:
        ends[number] = time.process_time() - began

    found = simulate(job, Modelled(), Adversity(kill=KILL, stragglers=STRAGGLERS, seed=SEED), news=ended)
    return found, ends


def of_events(lanes: int) -> Figure:
    """Return what an event costs the dispatcher, with many lanes and with few."""
    costs = []
    for number in (16, lanes):
        spent, events = [0.0], [0]
        originals = {name: getattr(Dispatcher, name) for name in CALLS}
        for name, original in originals.items():
            setattr(Dispatcher, name, counting(original, spent, events))
        try:
            timed("random", 2 * lanes, number)
        finally:
            for name, original in originals.items():
                setattr(Dispatcher, name, original)
        costs.append(1000 * spent[0] / events[0])
    return figure(f"an event at {lanes} lanes", costs[1:], asked=f"<= {EVENT_MS:g}", unit="ms",
                  baseline=f"{costs[0]:.3f} ms at 16 lanes")  # fmt: skip


def counting(original: Callable[..., Any], spent: list[float], events: list[int]) -> Callable[..., Any]:
    """Return a method that adds up its time and its calls; what it calls of the dispatcher itself counts within it."""
    depth = DEPTH

    def method(*given: Any, **named: Any) -> Any:
        depth[0] += 1
        began = time.process_time()
        try:
            return original(*given, **named)
        finally:
            depth[0] -= 1
            if not depth[0]:
                spent[0] += time.process_time() - began
                events[0] += 1

    return method


DEPTH = [0]


if __name__ == "__main__":
    main("--small" in sys.argv)
