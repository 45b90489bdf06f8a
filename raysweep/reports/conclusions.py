"""Say in sentences what a sweep found, from its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raysweep.reports.wording import count

# A sweep may hold thousands of trials. What is cut is counted, so that nobody takes a part for the whole.
MOST_LINES = 5
MOST_TROUBLES = 50
MOST_NUMBERS = 8


def conclusion(state: Mapping[str, Any]) -> str:
    """Say which trial is best, and how far that can be trusted."""
    best = next((trial for trial in state["trials"] if trial["trial"] == state["best"]), None)
    if best is None:
        completed = any(trial["status"] == "COMPLETE" for trial in state["trials"])
        return "no trial keeps to the constraints." if completed else "no trial completed."
    # That of its result: of a trial that halted, the phase that it went back to.
    final = best["final_perplexity"]
    heads = f"{best['active_heads']} of {best['head_slots']} heads"
    dense = best["controls"].get("dense")
    against = f" (dense control {show_perplexity(dense['perplexity'])})" if dense else ""
    text = f"best trial {best['trial']}: perplexity {show_perplexity(final)} with {heads}{against}."
    if isinstance(state["minimize"], list):
        # With several objectives no trial is the best one; `best` is only the first of the front.
        text = f"Pareto front of {' and '.join(state['minimize'])}: {_numbered(state['front'])}."
    return f"{text} {trust(state)}".strip()


def trust(state: Mapping[str, Any]) -> str:
    """Say how far the choice of the best trial can be trusted."""
    if state["winner"] is not None:
        return winner_text(state["winner"])
    if state["seeds"] > 1:
        # With several objectives no winner is confirmed: the table of points, with its intervals, says what is known.
        return "" if state["points"] else "Its other seeds are still to come."
    candidates = sum(trial["status"] == "COMPLETE" for trial in state["trials"])
    if state["planned"] == 1 or candidates < 2:
        return ""
    # The lowest of several noisy losses is partly the luckiest, so that its expected value is above what was measured.
    return f"The best of {candidates} single-seed trials is optimistic; set search.seeds: 3 to measure by how much."


def winner_text(winner: Mapping[str, Any]) -> str:
    """Say how the best of many points does on seeds that had no part in choosing it."""
    name, fresh, second = winner["objective"], winner["fresh"], winner["runner_up"]
    chosen = f"Chosen among {winner['points_tried']} by {name}: {winner['searched']:.4f} in the search"
    chosen += f", {winner['mean']:.4f} over its seeds"
    # A part of the fresh seeds confirms nothing: those that failed, or are still to run, may be the worst.
    if fresh is None or fresh["count"] < winner["fresh_seeds_planned"]:
        ran = fresh["count"] if fresh else 0
        return f"{chosen}; not confirmed: {ran} of {winner['fresh_seeds_planned']} fresh seeds have completed."
    chosen += f", {show_mean(fresh)} on {count(fresh['count'], 'fresh seed')}"
    if winner["confirmed"]:
        return f"{chosen}: confirmed."
    return f"{chosen}: no better than trial {second['trial']} with {second['mean']:.4f}, so there is no clear winner."


def work_done(state: Mapping[str, Any]) -> str:
    """Say how many trials ended and how, and how much was run for them."""
    counts = state["counts"]
    ended = sum(number for status, number in counts.items() if status != "UNFINISHED")
    how = ", ".join(f"{number} {status.lower()}" for status, number in sorted(counts.items()))
    return (
        f"{ended} of {count(state['planned'], 'trial')} ended{f': {how}' if how else ''} · "
        f"{count(state['phases_run'], 'phase')} run, {state['phases_reused']} reused (◇) · "
        f"{count(state['steps_run'], 'training step')} · "
        f"{count(state['worker_groups_started'], 'worker group')} started"
    )


def halt_text(halted: Mapping[str, Any]) -> str:
    """Say after which cycle a trial halted, by which rule and why."""
    return f"halted after cycle {halted['cycle']} ({halted['rule']}): {halted['reason']}."


def trouble_lines(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each failed trial or control arm and for each trial that halted; the first ones of very many."""
    lines = [line for trial in state["trials"] for line in _troubles(trial)]
    yield from lines[:MOST_TROUBLES]
    if len(lines) > MOST_TROUBLES:
        yield f"{count(len(lines) - MOST_TROUBLES, 'more line')} of this kind; show a trial to see its own."


def _troubles(trial: Mapping[str, Any]) -> Iterator[str]:
    if trial["error"]:
        # The last line of a traceback is the exception; `raysweep show` prints all of it.
        yield f"trial {trial['trial']} {trial['status']}: {trial['error'].strip().splitlines()[-1]}"
    for arm, error in trial["control_errors"].items():
        yield f"trial {trial['trial']}, control {arm}: {error}"
    if trial["halted"]:
        yield f"trial {trial['trial']} {halt_text(trial['halted'])}"


def stopped_lines(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield why stopping rules ended the first few trials, and how many others they ended."""
    stopped = [trial for trial in state["trials"] if trial["stopped"]]
    for trial in stopped[:MOST_LINES]:
        yield f"trial {trial['trial']} STOPPED: {trial['stopped']}"
    if len(stopped) > MOST_LINES:
        yield f"{count(len(stopped) - MOST_LINES, 'more trial')} STOPPED; show a trial to see why."


def missed_lines(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield for each constraint which trials miss it, and the smallest miss."""
    missed: dict[str, dict[int, float]] = {}
    for trial in state["trials"]:
        for rule, amount in trial["violations"].items():
            if amount > 0:  # zero or less: the constraint is kept
                missed.setdefault(rule, {})[trial["trial"]] = amount
    for rule, amounts in missed.items():
        nearest = min(amounts, key=lambda trial: amounts[trial])
        yield f"{rule}: missed by {_numbered(amounts)}; least by trial {nearest}, by {amounts[nearest]:.4g}"


def show_perplexity(value: float) -> str:
    """Write a perplexity with about four digits: small ones differ in their decimals."""
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1e5 else f"{value:.1e}"


def _numbered(trials: Iterable[int]) -> str:
    numbers = list(map(str, trials))
    shown = ", ".join(numbers[:MOST_NUMBERS])
    more = f" and {len(numbers) - MOST_NUMBERS} more" if len(numbers) > MOST_NUMBERS else ""
    return f"trial{'s' if len(numbers) > 1 else ''} {shown}{more}"


def show_mean(found: Mapping[str, Any]) -> str:
    """Write a mean with half the width of its interval, where it has one: a single seed has none."""
    return f"{found['mean']:.4f}" + ("" if found["high"] is None else f" ± {found['high'] - found['mean']:.4f}")
