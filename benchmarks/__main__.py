"""Run every benchmark, one process each, so that none inherits another's threads or memory."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "optimizer_step",
    "model_efficiency",
    "head_scores",
    "compaction",
    "training_step",
    "pnn_training_step",
    "pnn_throughput",
    "trial_overhead",
    "bookkeeping",
    "events",
    "many_trials",
    "disk",
    "full_disk",
    "sharing",
    "simulate",
    "cliff",
    "strategy_bandit",
    "quickstart",
    "kill_loop",
    "mutations",
)

for benchmark in BENCHMARKS:
    print(f"== {benchmark}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", f"benchmarks.{benchmark}"], check=True)
