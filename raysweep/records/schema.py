"""Records of phases, trials and sessions as plain data: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from raysweep.job.paths import copied

SCHEMA = 1
"""Stands in every record of a phase and of a trial; records of another number are refused, never guessed at."""
Status = Literal["COMPLETE", "STOPPED", "DIVERGED", "FAILED", "CANCELLED"]
ON_OTHER_SEEDS = ("replicate", "confirmation")
"""Proposers of trials that run a point of the search again on another seed."""
DERIVED = (*ON_OTHER_SEEDS, "fork")
"""Proposers of trials that were made from another trial. All other trials are the search's own: its sampler learns from
them, and its stopping rule may end them."""


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """The outcome of one phase of one trial. All numbers are measured on the model as the phase left it."""

    trial: int
    phase: str
    cycle: int
    key: str
    reused: bool
    """Whether another trial ran this phase, and its outcome was taken from the phase store."""
    loss: float
    """Mean held-out negative log-likelihood in nats per token."""
    perplexity: float
    active_heads: int
    head_map: list[list[int]]
    """`[layer][head]`: -1 absent, otherwise the cycle in which the head was grown (0: original)."""
    params: int
    """Parameters of the model without its absent heads."""
    flops_per_token: float
    """Forward floating-point operations per token at the job's window length, without absent heads."""
    steps: int
    tokens: int
    """Training tokens of the phase."""
    seconds: float
    """Wall time that this trial spent in the phase; for a reused phase, what fetching it took."""
    training_flops: float = 0.0
    """Floating-point operations of its training: three forward passes' worth a token, absent heads left out."""
    dense_training_flops: float = 0.0
    """Floating-point operations that its training would have taken with all heads present."""
    arm: str = "main"
    """`main`, or the control arm that the phase belongs to."""
    accuracy: float | None = None
    """Share of held-out labels that the largest logit hits."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of a classifier `matthews` and `f1`; see trial/measures/metrics.py."""
    mean_steps: float | None = None
    """From infer: mean number of steps until a token leaves, pads left out. The loss, perplexity, accuracy and
    flops_per_token of this record are then those of held-out examples of even number, with tokens leaving."""
    reported: dict[str, float] | None = None
    """From infer: the same numbers for held-out examples of odd number, on which nothing was chosen."""
    events: list[dict[str, Any]] | None = None
    """Prunes, measures and grows inside a continuous learn phase: of each its step and the fields of a phase record."""
    data_sha256: str = ""
    """Hash of the corpus."""
    held_out_sha256: str = ""
    """Hash of the held-out examples and their labels, hidden tokens included. Losses can be compared where it is
    equal."""
    schema: int = SCHEMA
    curve: list[dict[str, float]] = field(default_factory=list)
    """Points of the training curve: step, loss, lr, gradient_norm, and in learn new_head_gate and new_head_multiplier
    of the heads that were grown last."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """Held-out losses inside the phase: step, loss, training_flops; only with training.evaluate_every."""
    decision: dict[str, Any] | None = None
    """What prune removed or grow added: strategy, heads as [layer, head], and the scores by which they were ranked."""
    regrown: list[dict[str, Any]] | None = None
    """From grow, for each slot that came back: slot, the cycles it was pruned_in and grown_in, and its init."""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    """New heads in the course of learn: step, and heads with slot, gate, weight_norm, update (norm of the change since
    the previous point, None at the head's birth), entropy and output_norm."""
    statistics: dict[str, list[list[float | None]]] | None = None
    """Head statistics as `[layer][head]`, None where there is no head. From prune, of the heads before it; from
    measure, of those that are left."""
    agreement: dict[str, dict[str, float | None]] | None = None
    """Spearman correlation of each statistic with the heads' true contribution, `global` and `layer_centred`; from the
    same phases, where the job measures contributions."""
    samples: list[dict[str, Any]] | None = None
    """Greedy continuations of fixed held-out prompts: prompt, text, repetition (share of repeated 3-grams)."""

    @property
    def error_rate(self) -> float | None:
        """Share of held-out labels that the largest logit misses."""
        return None if self.accuracy is None else 1 - self.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in their order: small ones that tables read first, bulky ones last; see `skim`."""
        return {name: copied(value) for name, value in vars(self).items()}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> PhaseRecord:
        return PhaseRecord(**_known(PhaseRecord, content))

    @staticmethod
    def skim(line: bytes, stop: str) -> dict[str, Any]:
        """Return the object in a record's line without the field `stop` and those after it.

        They can be most of its bytes, and a table of thousands of trials reads none of them.
        """
        # A cut at the field's name as text, which is many times faster than to parse it all. A quote inside a value is
        # escaped in JSON, so the pattern cannot be found there.
        head, found, _ = line.partition(f', "{stop}": '.encode())
        try:
            content = json.loads(head + b"}" if found else line)
        except ValueError:
            # The name was found inside an earlier field, such as events, which hold records of their own.
            return json.loads(line)
        # A line of an older raysweep may have its fields in another order, with a needed one behind the cut.
        whole = isinstance(content, dict) and "trial" in content and "schema" in content
        return content if whole else json.loads(line)

    def outcome(self) -> dict[str, Any]:
        """Return the fields that are equal between two runs of the same phase: all but where and how long it ran."""
        content = self.to_dict()
        for name in ("trial", "arm", "reused", "seconds"):
            del content[name]
        return content


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """How one trial ended."""

    trial: int
    status: Status
    values: dict[str, Any]
    seed: int
    proposer: str
    """Name of the sampler that proposed the values; `job` for a job without a search; `replicate`, `confirmation` or
    `fork` for a trial that was made from another one, `of`."""
    objective: float | None
    """The first of `objectives`; None where the trial did not complete."""
    attempts: int
    phases: list[str]
    """Keys of its phases, in order."""
    seconds: float
    objectives: dict[str, float] = field(default_factory=dict)
    """What the search minimizes, by name, in the phase that is its result; empty where it did not complete."""
    violations: dict[str, float] = field(default_factory=dict)
    """By how much its result misses each constraint; 0 or less where it meets it."""
    of: int | None = None
    """The trial that it replicates or confirms on another seed, or was forked from; see `proposer`."""
    stopped: str | None = None
    """Why the stopping rule ended it."""
    halted: dict[str, Any] | None = None
    """Why it ended before its last cycle: rule, cycle, kept (key of the phase that is its result), reason."""
    controls: dict[str, list[str]] = field(default_factory=dict)
    """Keys of each control arm's phases, in order, including those that it shares with the trial's own phases."""
    control_errors: dict[str, str] = field(default_factory=dict)
    """Why a control arm could not be run, by its name."""
    error: str | None = None
    """Why it did not complete: phase, message, and after a crash the worker's traceback."""
    cluster_fault: bool = False
    """Whether it failed because the cluster lost it (workers killed, a node or all lanes gone), and not by its values:
    then its sampler learns nothing from it."""
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        return {name: copied(value) for name, value in vars(self).items()}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> TrialRecord:
        return TrialRecord(**_known(TrialRecord, content))


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record's class that a line holds.

    Raises:
        ValueError: it is a record of another schema.
    """
    if content.get("schema") != SCHEMA:
        raise ValueError(f"record of schema {content.get('schema')!r}; this raysweep reads schema {SCHEMA}")
    # Other keys were added by a newer raysweep of the same schema, so they may be left out.
    names = _field_names(kind)
    return {key: value for key, value in content.items() if key in names}


@cache
def _field_names(kind: Any) -> frozenset[str]:
    return frozenset(item.name for item in fields(kind))


def perplexity(loss: float) -> float:
    """Return exp(mean loss), or infinity where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def recovery(*, pruned: float, learned: float, dense: float) -> float | None:
    """Return (pruned - learned) / (pruned - dense): the share of the loss from pruning that learning won back.

    It is not clamped: below 0, learning did harm; above 1, the network is better than the dense one that trained for as
    long. None where the dense network is no better than the pruned one, so that there is nothing to recover.

    Args:
        pruned: held-out loss after pruning.
        learned: held-out loss of the trial's result.
        dense: held-out loss of the dense control.
    """
    return None if pruned <= dense else (pruned - learned) / (pruned - dense)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial as it was proposed: everything that resume needs to run it again."""

    trial: int
    values: dict[str, Any]
    proposer: str
    attempt: int
    """1, and one more for each time that a resumed sweep started the trial again."""
    seed: int
    of: int | None = None
    """The trial that this one replicates or confirms on another seed, or was forked from."""
    job: str = ""
    """Hash of the job that it was planned by, see job/identity.py; empty where a record of how it ended is all that is
    left of it."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """A trial that lost its workers: how far it had come, and where it continued."""

    trial: int
    attempt: int
    """The attempt that continued it."""
    fruitless: int = 0
    """How many attempts before it, in a row, had passed no checkpoint and finished no phase."""
    phase: str
    """The last training phase before the loss; empty where no phase had logged a step."""
    cycle: int
    reached: int
    """Last step that this phase had logged."""
    resumed_at: int
    """Step from which the trial continued; equal to `reached` where the phase had ended."""
    interval: int
    """Steps between two checkpoints at that time."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run of a sweep's driver."""

    session: str
    host: str
    pid: int
    started: float
    """Unix time."""
    seconds: float = 0.0
    """Seconds from its start until the last time that it wrote this record."""
    ended: str | None = None
    """Why it ended; None where it has not, or was killed."""
    limit: str | None = None
    """The setting of the budget that was used up, such as `budget.hours`; None where none was."""
