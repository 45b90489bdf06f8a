"""Check what must hold of every sweep, whatever happened to it, on its archive, its phase store and its processes."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from raysweep.records import objectives, points
from raysweep.records.folder import SweepFolder
from raysweep.records.jsonlines import described
from raysweep.sweep.checkpoints import broken_parts
from raysweep.sweep.deep import DEEP
from raysweep.sweep.evidence import Act, Evidence, Phase
from raysweep.sweep.lifecycle import other_jobs
from raysweep.sweep.processes import left_over
from raysweep.sweep.wording import some

TOLD_AS = {"COMPLETE": "COMPLETE", "STOPPED": "PRUNED"}
"""Status of a record -> state in the study's journal; FAIL for any other status."""
CLOCK_S = 1.0
"""By how much the start of a process, which is counted from boot, may be off."""


def check(folder: SweepFolder) -> list[str]:
    """Return every broken invariant in words. Trials that are still open break none."""
    return [broken for found in examine(folder)["invariants"].values() for broken in found]


def examine(folder: SweepFolder, deep: bool = False) -> dict[str, Any]:
    """Return how far a sweep has come, and what breaks each invariant.

    Args:
        deep: whether to read every checkpoint, too, which takes long.
    """
    evidence = Evidence.read(folder)
    return {
        "sweep": folder.name,
        "planned": evidence.planned,
        "ended": len(evidence.ended),
        "open": evidence.open_trials,
        "running": evidence.running,
        "invariants": {name: list(judge(evidence)) for name, judge in (INVARIANTS | (DEEP if deep else {})).items()},
    }


# One function for each invariant: it yields what breaks it. Their names are in INVARIANTS, at the end.


def _readable(evidence: Evidence) -> Iterator[str]:
    for file, lines in evidence.damaged.items():
        # A driver may be in the middle of its last line.
        broken = [line for line in lines if line.content.endswith(b"\n") or not evidence.running]
        if broken:
            yield f"{described(evidence.folder.path / file, broken)} left out; 'raysweep resume' sets it aside"


def _counts(evidence: Evidence) -> Iterator[str]:
    search = evidence.job.spec.search
    planned = search.trials if search else 1
    searched = sum(map(points.is_search, evidence.proposals.values()))
    if searched > planned:
        yield f"the search proposed {searched} trials, but {planned} were planned"
    cancelled = [trial for trial, record in evidence.ended.items() if record.status == "CANCELLED"]
    if cancelled and evidence.finished:
        yield f"trials {some(cancelled)} were cancelled, and the sweep ended without them"
    # Trials are numbered without gaps, also those that run points on more seeds.
    missing = _missing_numbers(evidence.proposals)
    if missing:
        yield f"trials {some(missing)} were passed over"


def _missing_numbers(trials: Sequence[int] | dict[int, Any]) -> list[int]:
    return sorted(set(range(1, max(trials, default=0) + 1)) - set(trials))


def _counted_once(evidence: Evidence) -> Iterator[str]:
    # `raysweep retry` opens a trial again with a line of its own; a second ending is no fault behind that.
    for ending in evidence.endings:
        if not ending.was_open:
            yield f"trial {ending.record.trial} was counted again, as {ending.record.status}, after it had ended"


def _proposed(evidence: Evidence) -> Iterator[str]:
    for what, trials in (("an end", evidence.ended), ("phases", evidence.phases)):
        unknown = sorted(set(trials) - set(evidence.proposals))
        if unknown:
            yield f"trials {some(unknown)} have {what}, but were never proposed"
    for trial, record in evidence.ended.items():
        proposal = evidence.proposals.get(trial)
        if proposal is not None and (record.values, record.seed) != (proposal.values, proposal.seed):
            yield f"trial {trial} ended with other values or another seed than it was proposed with"


def _whole_trials(evidence: Evidence) -> Iterator[str]:
    # A trial that was stopped or failed may lack any of its phases.
    for trial, record in evidence.ended.items():
        if record.status == "COMPLETE":
            recorded = {phase.key for phase in evidence.phases.get(trial, ())}
            missing = [key for key in record.phases if key not in recorded]
            if missing:
                yield f"trial {trial} is complete, but {len(missing)} of its {len(record.phases)} phases are missing"


def _objectives(evidence: Evidence) -> Iterator[str]:
    search = evidence.job.spec.search
    for trial, record in evidence.ended.items():
        found = {phase.key: phase.measured for phase in evidence.phases.get(trial, ())}
        own = [found[key] for key in record.phases if key in found]
        kept = found.get(record.halted["kept"] if record.halted else record.phases[-1] if record.phases else "")
        # Without the record of its result, the trial lacks a phase, which another invariant says.
        if record.status != "COMPLETE" or kept is None:
            continue
        measured = objectives.outcome_at(search, own, kept)
        first = next(iter(measured.objectives.values()))
        # As text, because NaN differs from itself.
        recorded = {"objectives": record.objectives, "violations": record.violations, "objective": record.objective}
        expected = {"objectives": measured.objectives, "violations": measured.violations, "objective": first}
        for name in (name for name in recorded if repr(recorded[name]) != repr(expected[name])):
            yield f"trial {trial}: {name} {recorded[name]} is recorded, but its phases measured {expected[name]}"


def _planned_by_the_job(evidence: Evidence) -> Iterator[str]:
    edited = other_jobs(evidence.proposals.values(), evidence.job)
    if edited:
        yield f"job.yaml is not the job that trials {some(edited)} were planned by: it was edited"


def _steps(evidence: Evidence) -> Iterator[str]:
    for phases in evidence.phases.values():
        for phase in phases:
            if phase.misstep:
                yield f"trial {phase.trial}, {phase.label}: {phase.misstep}"


def _attempts(evidence: Evidence) -> Iterator[str]:
    # Attempts that got on do not count.
    limit = evidence.job.spec.scale.max_attempts
    for retry in evidence.retries:
        if retry.fruitless >= limit:
            yield (
                f"trial {retry.trial} was tried again after {retry.fruitless} attempts in a row that got no further, "
                f"but scale.max_attempts is {limit}"
            )


def _told_once(evidence: Evidence) -> Iterator[str]:
    told = Counter(trial for trial, _ in evidence.told)
    # A trial that was opened again has several results.
    results: Counter[int | None] = Counter(
        ending.record.trial for ending in evidence.endings if _searched(evidence, ending.record.trial)
    )
    for trial, state in evidence.told:
        if trial not in results:
            yield f"the sampler knows a trial as {state} that is no result of its search: {trial}"
    for trial, times in told.items():
        if trial in results and times > results[trial]:
            yield f"the sampler was told {times} times of trial {trial}"
    # The latest state counts, and only once the journal has caught up with the records of a running sweep.
    latest = dict(evidence.told)
    for trial, record in evidence.ended.items():
        as_expected = latest.get(trial) == TOLD_AS.get(record.status, "FAIL")
        if trial in results and told[trial] == results[trial] and not as_expected:
            yield f"the sampler was told {latest[trial]} of trial {trial}, which is {record.status}"
    untold = [trial for trial in _due(evidence, list(results), told) if trial not in told]
    if untold:
        yield f"the sampler was never told of trials {some(untold)}"


def _due(evidence: Evidence, results: list[int | None], told: Container[int | None]) -> list[int | None]:
    """Return the results that the sampler must have received; a running sweep may lag by the last ones."""
    # The driver writes the record first and tells the sampler afterwards.
    while results and not evidence.finished and results[-1] not in told:
        results.pop()
    return results


def _searched(evidence: Evidence, trial: int) -> bool:
    proposal = evidence.proposals.get(trial)
    return evidence.job.space is not None and proposal is not None and points.is_search(proposal)


def _heads(evidence: Evidence) -> Iterator[str]:
    for trial, phases in evidence.phases.items():
        record = evidence.ended.get(trial)
        by_key = {phase.key: phase for phase in phases}
        # The label of a control arm's phase begins with "<arm>: ". The arms of a trial that has ended list the keys of
        # shared phases, too; before that their chains are not whole.
        own = [phase for phase in phases if ": " not in phase.label]
        # A trial that went on with other code began again: the chain is that of its last baseline.
        own = own[max((at for at, phase in enumerate(own) if phase.label == "baseline"), default=0) :]
        if record is not None:
            # In the order of its plan: a record that was mended stands at the end of its file.
            own = [by_key[key] for key in record.phases if key in by_key]
        arms = record.controls if record else {}
        # A small model's heads follow from those of the trial and not from decisions.
        chains = [[by_key[key] for key in keys if key in by_key]
                  for arm, keys in arms.items() if arm != "from_scratch_small"]  # fmt: skip
        yield from dict.fromkeys(fault for chain in (own, *chains) for fault in _chain_faults(chain))


def _chain_faults(chain: Sequence[Phase]) -> Iterator[str]:
    """Replay the decisions of a chain of phases, from a full model on, and compare the head map after each phase."""
    before = [[0] * len(row) for row in chain[0].head_map] if chain else []
    for phase in chain:
        expected = [list(row) for row in before]
        for act in phase.acts:
            yield from (f"trial {phase.trial}, {phase.label}: {fault}" for fault in _apply(act, expected))
        wrong = [
            f"{layer}.{head}" for layer, row in enumerate(phase.head_map) for head, grown in enumerate(row)
            if grown != expected[layer][head]
        ]  # fmt: skip
        if wrong:
            yield f"trial {phase.trial}, {phase.label}: heads {some(wrong)} are not what its decisions made them"
        # From what was recorded and not from what was expected: one fault is reported once.
        before = phase.head_map


def _apply(act: Act, heads: list[list[int]]) -> Iterator[str]:
    # -1 is an absent head; any other number is the cycle in which it was grown.
    for layer, head in act.heads:
        present = heads[layer][head] >= 0
        if act.kind == "grow" and present:
            yield f"grew head {layer}.{head}, which was there"
        if act.kind == "prune" and not present:
            yield f"removed head {layer}.{head}, which was absent"
        heads[layer][head] = act.cycle if act.kind == "grow" else -1


def _equal_outcomes(evidence: Evidence) -> Iterator[str]:
    # On GPUs the order of sums varies, so two runs of a phase may differ. With sharing there is only one run.
    if evidence.job.spec.scale.gpus_per_worker and not evidence.sharing:
        return
    first: dict[str, Phase] = {}
    for phases in evidence.phases.values():
        for phase in phases:
            other = first.setdefault(phase.key, phase)
            if other.outcome != phase.outcome:
                yield f"{phase.label} of trials {other.trial} and {phase.trial} has one key, but two outcomes"


def _best_on_disk(evidence: Evidence) -> Iterator[str]:
    for point in points.front(points.gather(evidence.proposals, evidence.ended)):
        # A halted trial goes back to the phase that its rule kept, which may not be its last.
        best = point.searched
        kept = best.halted["kept"] if best.halted else best.phases[-1]
        missing = list(broken_parts(evidence.folder.store_of(best.trial), kept))
        if missing:
            yield f"of the best trial, {best.trial}, the store lacks {some(missing)}"


def _waste(evidence: Evidence) -> Iterator[str]:
    # The interval is in each line: a resumed sweep may have another one.
    for retry in evidence.retries:
        wasted = retry.reached - retry.resumed_at
        if wasted > retry.interval:
            yield (
                f"trial {retry.trial} lost its workers in {retry.phase} at step {retry.reached} and went on from step "
                f"{retry.resumed_at}: {wasted} steps were wasted, with a checkpoint every {retry.interval}"
            )


def _no_process_left(evidence: Evidence) -> Iterator[str]:
    lanes = evidence.folder.lanes()
    # Process numbers mean something on the machine where the workers ran, and a running sweep has workers.
    elsewhere = evidence.hosts and socket.gethostname() not in evidence.hosts
    if evidence.running or elsewhere or not lanes:
        return
    # The file was written last when the newest group started: a process that is younger has only taken over the number.
    known_since = (evidence.folder.path / "lanes.jsonl").stat().st_mtime + CLOCK_S
    alive = left_over((pid for lane in lanes for pid in lane.pids), started_before=known_since)
    if alive:
        yield f"nobody runs the sweep, but its workers are alive: processes {some(alive)}"


INVARIANTS: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "every line of the records can be read": _readable,
    "planned = finished + stopped + diverged + failed": _counts,
    "no trial is counted twice": _counted_once,
    "every record belongs to a proposed trial": _proposed,
    "every trial was planned by the job": _planned_by_the_job,
    "a completed trial has all its phases": _whole_trials,
    "objectives are those of the phase records": _objectives,
    "the steps of every training phase run from 1 to its last": _steps,
    "no trial took more attempts than allowed": _attempts,
    "the sampler was told each result once": _told_once,
    "heads come and go by decisions alone": _heads,
    "equal phases have equal outcomes": _equal_outcomes,
    "the best trial's checkpoint is on disk": _best_on_disk,
    "a lost worker costs at most a checkpoint interval": _waste,
    "no process is left over": _no_process_left,
}
