"""Compare a small PNN with plain stacks of layers on WikiText-2, at equal tokens and at equal training FLOPs.

    python -m benchmarks.pnn_study FOLDER   # a folder with WikiText-2's test.txt and valid.txt

The arms are the points of jobs/pnn_study.yaml. Each gets a learning rate of its own: that of RATES with the lowest
training loss in a pilot of half of the steps, on a seed that is used for nothing else. All train on test.txt with
the same examples in the same order for a seed, and are measured on valid.txt with the same tokens hidden. Differences
from the published gate are paired by seed.

Every run is kept in results/pnn_study.jsonl when it ends, and not repeated by a later one with the same settings.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy import stats

from benchmarks.reference import FOLDER, Figure, save, show
from raysweep.job.jobfile import Job, apply_values, check_job, load_job
from raysweep.job.plan import content_key, make_plan
from raysweep.records.environment import usable_cores
from raysweep.records.statistics import Difference, Mean, mean_of, paired
from raysweep.science.pnn.efficiency import cost
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.phases import run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.store.phase_store import PhaseStore

BENCHMARK = "pnn_study"
JOB = FOLDER.parent.parent / "jobs" / "pnn_study.yaml"
KEPT = FOLDER.parent / "pnn_study.jsonl"
RATES = (3e-3, 6e-3)
PILOT_SEED, PILOT_SHARE = 1000, 1 / 2
CLOSE = 0.02
"""Training FLOPs that differ by no more than this share are equal."""
SIGNIFICANT = 0.05
Outcome = dict[str, float]
Settings = dict[str, Any]
"""The settings of one run: a job as a mapping."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One network under one comparison, over the seeds."""

    comparison: str
    name: str
    steps: int
    lr: float
    loss: Mean
    """Held-out losses, nats per masked token."""
    losses: tuple[float, ...]
    accuracy: float
    training_flops: float
    above: Difference | None
    """Loss minus that of the reference; None for the reference itself."""


def main(data: Path) -> None:
    folder = {"data.name": str(data), "data.train": "test", "data.evaluate": "valid"}
    job = load_job(JOB)
    found = study(apply_values(job.spec.resolved(), folder), job, Runs(KEPT, usable_cores()))
    save(BENCHMARK, figures(found))
    for one in figures(found):
        show(one)
    (FOLDER / f"{BENCHMARK}.md").write_text(markdown(found), encoding="utf-8")


def study(raw: Settings, job: Job, runs: Runs) -> list[Arm]:
    """Run every arm of a job's grid; the first one is the reference.

    Args:
        raw: the job as a mapping, its data as they are to be read.
    """
    assert job.space is not None and job.spec.search is not None
    arms = {_name(values): dict(values) for values in job.space.points(job.spec.resolved())}
    seeds = range(job.spec.seed, job.spec.seed + job.spec.search.seeds)
    steps: int = raw["cycle"]["baseline"]["steps"]
    rates = _rates(raw, arms, round(PILOT_SHARE * steps), runs)
    flops = {name: cost(check_job(_settings(raw, values), name).spec.model, raw["data"]["seq_len"]).training_flops
             for name, values in arms.items()}  # fmt: skip
    reference = next(iter(arms))
    lengths = {
        "equal tokens": dict.fromkeys(arms, steps),
        "equal training FLOPs": {name: round(steps * flops[reference] / flops[name]) for name in arms},
    }
    wanted = {
        (comparison, name, seed): _settings(raw, values, steps=lengths[comparison][name], lr=rates[name], seed=seed)
        for comparison in lengths for name, values in arms.items() for seed in seeds
    }  # fmt: skip
    outcomes = dict(zip(wanted, runs.all(list(wanted.values())), strict=True))
    found = []
    for comparison, steps_of in lengths.items():
        by_arm = {name: {seed: outcomes[comparison, name, seed] for seed in seeds} for name in arms}
        for name, by_seed in by_arm.items():
            losses = _losses(by_seed)
            found.append(
                Arm(
                    comparison=comparison, name=name, steps=steps_of[name], lr=rates[name],
                    loss=mean_of(list(losses.values())), losses=tuple(losses.values()),
                    accuracy=fmean(outcome["accuracy"] for outcome in by_seed.values()),
                    training_flops=fmean(outcome["training_flops"] for outcome in by_seed.values()),
                    above=None if name == reference else paired(losses, _losses(by_arm[reference])),
                )
            )  # fmt: skip
    _check_equal_flops(found)
    return found


def _rates(raw: Settings, arms: Mapping[str, Settings], steps: int, runs: Runs) -> dict[str, float]:
    """Return the learning rate of each arm, by its pilots."""
    pilots = {
        (name, lr): _settings(raw, values, steps=max(1, steps), lr=lr, seed=PILOT_SEED)
        for name, values in arms.items() for lr in RATES
    }  # fmt: skip
    found = dict(zip(pilots, runs.all(list(pilots.values())), strict=True))
    return {name: min(RATES, key=lambda lr: found[name, lr]["training_loss"]) for name in arms}


def _settings(
    raw: Settings, values: Mapping[str, Any], steps: int = 1, lr: float = 1e-3, seed: int = 0
) -> Settings:  # fmt: skip
    settings = {**values, "cycle.baseline.steps": steps, "cycle.baseline.lr": lr, "seed": seed}
    return apply_values({key: part for key, part in raw.items() if key != "search"}, settings)


def _losses(by_seed: Mapping[int, Outcome]) -> dict[int, float]:
    return {seed: outcome["loss"] for seed, outcome in by_seed.items()}


def _name(values: Mapping[str, Any]) -> str:
    trunk, steps = values["model.trunk"], values.get("model.num_steps")
    if trunk == "refiner":
        return f"PNN, gate {values['model.gate']}"
    return "1 layer, shared" if trunk == "shared_layer" else f"{steps} layer{'s' if steps != 1 else ''}"


def _check_equal_flops(arms: Sequence[Arm]) -> None:
    equal = [arm for arm in arms if arm.comparison == "equal training FLOPs"]
    for arm in equal:
        off = arm.training_flops / equal[0].training_flops - 1
        if abs(off) > CLOSE:
            raise ValueError(f"{arm.name}: {off:+.1%} training FLOPs; take more steps, so that they can be rounded.")


# Runs.


class Runs:
    """Runs jobs in several processes, one thread each, and keeps every outcome in a file."""

    def __init__(self, path: Path, processes: int) -> None:
        self.path, self.processes = path, processes
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.known: dict[str, Outcome] = {row["key"]: row["outcome"] for row in map(json.loads, lines)}

    def all(self, jobs: Sequence[Settings]) -> list[Outcome]:
        """Return the outcome of each job, in their order."""
        missing = {content_key(job): job for job in jobs if content_key(job) not in self.known}
        started = time.perf_counter()
        for done, (key, outcome) in enumerate(self._run(missing), start=1):
            self._keep(key, outcome)
            said = f"{done}/{len(missing)}  loss {outcome['loss']:.4f}  {time.perf_counter() - started:.0f} s"
            print(f"{said}  {json.dumps(missing[key]['model'])}", file=sys.stderr, flush=True)
        return [self.known[content_key(job)] for job in jobs]

    def _run(self, jobs: Mapping[str, Settings]) -> Iterable[tuple[str, Outcome]]:
        if self.processes == 1:
            yield from ((key, run(job)) for key, job in jobs.items())
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = {pool.submit(run, job): key for key, job in jobs.items()}
            yield from ((futures[future], future.result()) for future in as_completed(futures))

    def _keep(self, key: str, outcome: Outcome) -> None:
        self.known[key] = outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "outcome": outcome}) + "\n")


def run(settings: Settings) -> Outcome:
    """Train one network from its first weights; return the numbers that are compared."""
    job = check_job(settings, BENCHMARK)
    plan = make_plan(job.spec, {}, trial=1, fingerprints=preflight(job))
    with tempfile.TemporaryDirectory() as folder:
        (record,) = run_trial(plan, Runtime(device=torch.device("cpu")), PhaseStore(Path(folder)))
    assert record.accuracy is not None and record.training_flops is not None
    return {
        "loss": record.loss,
        "accuracy": record.accuracy,
        "training_loss": fmean(point["loss"] for point in record.curve[-3:]),
        "training_flops": record.training_flops,
        "tokens": record.tokens,
    }


# What is said of them.


def figures(arms: Sequence[Arm]) -> list[Figure]:
    return [
        Figure(
            name=f"{arm.comparison}: {arm.name}, held-out loss", measured=_rounded(arm.loss.mean), asked="(measured)",
            unit="nats per hidden token", baseline=_difference(arm), runs=_spread(arm),
        )
        for arm in arms
    ]  # fmt: skip


def _spread(arm: Arm) -> dict[str, float]:
    ordered = sorted(arm.losses)
    known = {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1], "count": float(len(ordered))}
    interval = {"low": arm.loss.low, "high": arm.loss.high}
    about = {"steps": float(arm.steps), "lr": arm.lr, "accuracy": arm.accuracy, "training_flops": arm.training_flops}
    numbers = {**known, **interval, **about}
    return {name: _rounded(number) for name, number in numbers.items() if number is not None}


def _difference(arm: Arm) -> str:
    if arm.above is None:
        return "the arms beside it"
    return f"{arm.above.mean:+.4f} {_interval(arm.above)} above PNN with the published gate, paired by seed"


def _interval(mean: Mean | Difference) -> str:
    return "" if mean.low is None or mean.high is None else f"[{mean.low:.4f}, {mean.high:.4f}]"


def _rounded(number: float) -> float:
    return float(f"{number:.5g}")


def markdown(arms: Sequence[Arm]) -> str:
    """Return the tables and the sentences about them."""
    lines = [
        "# A small study of PNN", "",
        "Written by `python -m benchmarks.pnn_study`; settings in `jobs/pnn_study.yaml`. Held-out loss in nats per",
        "hidden token, means over seeds with 95% t-intervals; differences from the first row, paired by seed.",
    ]  # fmt: skip
    for comparison in dict.fromkeys(arm.comparison for arm in arms):
        lines += ["", f"## {comparison.capitalize()}", ""]
        lines += [
            "| arm | steps | lr | training TFLOP | loss | accuracy | difference |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [_row(arm) for arm in arms if arm.comparison == comparison]
    return "\n".join([*lines, "", "## What this shows", "", *conclusions(arms), ""])


def _row(arm: Arm) -> str:
    above = "" if arm.above is None else f"{arm.above.mean:+.4f} {_interval(arm.above)}"
    loss = f"{arm.loss.mean:.4f} {_interval(arm.loss)}"
    shown = (f"{arm.steps}", f"{arm.lr:g}", f"{arm.training_flops / 1e12:.3f}", loss, f"{arm.accuracy:.1%}", above)
    return f"| {arm.name} | {' | '.join(shown)} |"


def conclusions(arms: Sequence[Arm]) -> list[str]:
    """Say of each comparison which arms are better or worse than the reference, at a false discovery rate of 5%."""
    tested = [arm for arm in arms if arm.above is not None and arm.above.p_value is not None]
    chances = stats.false_discovery_control([arm.above.p_value for arm in tested if arm.above]) if tested else []
    found = {id(arm) for arm, chance in zip(tested, chances, strict=True) if chance < SIGNIFICANT}
    said = []
    for comparison in dict.fromkeys(arm.comparison for arm in arms):
        others = [arm for arm in arms if arm.comparison == comparison and arm.above is not None]
        verdicts = {
            "better than the published gate": _names(others, lambda arm: id(arm) in found and _above(arm) < 0),
            "worse": _names(others, lambda arm: id(arm) in found and _above(arm) > 0),
            "no difference shown": _names(others, lambda arm: id(arm) not in found),
        }
        said.append(
            f"- At {comparison}: " + "; ".join(f"{verdict}: {names}" for verdict, names in verdicts.items()) + "."
        )
    seeds = len(arms[0].losses)
    caution = (
        f"- {len(tested)} differences were tested together, at a false discovery rate of {SIGNIFICANT:.0%}. "
        f"With {seeds} seeds only large ones can be shown: that none is shown proves no equality, "
        "and nothing here says what happens at the published size."
    )
    return [*said, caution]


def _names(arms: Sequence[Arm], chosen: Callable[[Arm], bool]) -> str:
    return ", ".join(arm.name for arm in arms if chosen(arm)) or "no arm"


def _above(arm: Arm) -> float:
    return arm.above.mean if arm.above is not None else 0.0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
