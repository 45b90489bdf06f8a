"""What a sweep came to, in sentences: from its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raysweep.reports.wording import count

MOST_LINES = 5
MOST_TROUBLES = 50
MOST_NUMBERS = 8


def conclusion(state: Mapping[str, Any]) -> str:
    """Say which trial is best, and how far one should trust that."""
    best = next((trial for trial in state["trials"] if trial["trial"] == state["best"]), None)
    if best is None:
        completed = any(trial["status"] == "COMPLETE" for trial in state["trials"])
        return "no trial keeps to the constraints." if completed else "no trial completed."
    final = best["final_perplexity"]
    heads = f"{best['active_heads']} of {best['head_slots']} heads"
    dense = best["controls"].get("dense")
    against = f" (dense control {show_perplexity(dense['perplexity'])})" if dense else ""
    text = f"best trial {best['trial']}: perplexity {show_perplexity(final)} with {heads}{against}."
    if isinstance(state["minimize"], list):
        text = f"Pareto front of {' and '.join(state['minimize'])}: {_numbered(state['front'])}."
    return f"{text} {trust(state)}".strip()


def trust(state: Mapping[str, Any]) -> str:
    """Say what the choice of the best trial is worth."""
    if state["winner"] is not None:
        return winner_text(state["winner"])
    if state["seeds"] > 1:
        return "" if state["points"] else "Its other seeds are still to come."
    candidates = sum(trial["status"] == "COMPLETE" for trial in state["trials"])
    if state["planned"] == 1 or candidates < 2:
        return ""
    return f"Best of {candidates} on one seed each: expect worse on fresh seeds; search.seeds: 3 measures it."


def winner_text(winner: Mapping[str, Any]) -> str:
    """Say how the best point of many does on seeds that had no part in choosing it."""
    name, fresh, second = winner["objective"], winner["fresh"], winner["runner_up"]
    chosen = f"Chosen among {winner['points_tried']} by {name}: {winner['searched']:.4f} in the search"
    chosen += f", {winner['mean']:.4f} over its seeds"
    if fresh is None or fresh["count"] < winner["fresh_seeds_planned"]:
        ran = fresh["count"] if fresh else 0
        return f"{chosen}; not confirmed: {ran} of {winner['fresh_seeds_planned']} fresh seeds have completed."
    chosen += f", {show_mean(fresh)} on {count(fresh['count'], 'fresh seed')}"
    if winner["confirmed"]:
        return f"{chosen}: confirmed."
    return f"{chosen}: no better than trial {second['trial']} with {second['mean']:.4f}, so there is no clear winner."


def work_done(state: Mapping[str, Any]) -> str:
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
    return f"halted after cycle {halted['cycle']} ({halted['rule']}): {halted['reason']}."


def trouble_lines(state: Mapping[str, Any]) -> Iterator[str]:
    """Say what went wrong in trials, and which ones halted; of very many the first."""
    lines = [line for trial in state["trials"] for line in _troubles(trial)]
    yield from lines[:MOST_TROUBLES]
    if len(lines) > MOST_TROUBLES:
        yield f"{count(len(lines) - MOST_TROUBLES, 'more line')} of this kind; show a trial to see its own."


def _troubles(trial: Mapping[str, Any]) -> Iterator[str]:
    if trial["error"]:
        yield f"trial {trial['trial']} {trial['status']}: {trial['error'].strip().splitlines()[-1]}"
    for arm, error in trial["control_errors"].items():
        yield f"trial {trial['trial']}, control {arm}: {error}"
    if trial["halted"]:
        yield f"trial {trial['trial']} {halt_text(trial['halted'])}"


def stopped_lines(state: Mapping[str, Any]) -> Iterator[str]:
    """Say why stopping rules ended trials, of the first few; the others in a number."""
    stopped = [trial for trial in state["trials"] if trial["stopped"]]
    for trial in stopped[:MOST_LINES]:
        yield f"trial {trial['trial']} STOPPED: {trial['stopped']}"
    if len(stopped) > MOST_LINES:
        yield f"{count(len(stopped) - MOST_LINES, 'more trial')} STOPPED; show a trial to see why."


def missed_lines(state: Mapping[str, Any]) -> Iterator[str]:
    """Say of each constraint which completed trials miss it, and by how much the nearest does."""
    missed: dict[str, dict[int, float]] = {}
    for trial in state["trials"]:
        for rule, amount in trial["violations"].items():
            if amount > 0:
                missed.setdefault(rule, {})[trial["trial"]] = amount
    for rule, amounts in missed.items():
        nearest = min(amounts, key=lambda trial: amounts[trial])
        yield f"{rule}: missed by {_numbered(amounts)}; least by trial {nearest}, by {amounts[nearest]:.4g}"


def show_perplexity(value: float) -> str:
    """Write a perplexity with four digits or so: differences matter where it is small."""
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1e5 else f"{value:.1e}"


def _numbered(trials: Iterable[int]) -> str:
    numbers = list(map(str, trials))
    shown = ", ".join(numbers[:MOST_NUMBERS])
    more = f" and {len(numbers) - MOST_NUMBERS} more" if len(numbers) > MOST_NUMBERS else ""
    return f"trial{'s' if len(numbers) > 1 else ''} {shown}{more}"


def show_mean(found: Mapping[str, Any]) -> str:
    """Write a mean with half of its interval, where it has one."""
    return f"{found['mean']:.4f}" + ("" if found["high"] is None else f" ± {found['high'] - found['mean']:.4f}")
