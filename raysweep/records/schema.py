"""What a phase and a trial produced, as plain data: one JSON object a line, with a schema number."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

SCHEMA = 1
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
    """True: another trial ran this phase, and its outcome was taken from the phase store."""
    loss: float
    """Mean held-out negative log-likelihood in nats per token."""
    perplexity: float
    active_heads: int
    head_map: list[list[int]]
    """[layer][head]: -1 absent, otherwise the cycle in which the head was grown (0: original)."""
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
    """What its training would have taken with every head there."""
    arm: str = "main"
    """`main`, or the control arm that the phase belongs to."""
    accuracy: float | None = None
    """Share of held-out labels that the largest logit hits."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of a classifier, `matthews` and `f1`; see trial/measures/metrics."""
    mean_steps: float | None = None
    """From infer: steps that a token takes until it leaves, pads left out. Its loss, perplexity, accuracy and
    flops_per_token are of the held-out examples of even number, with tokens leaving."""
    reported: dict[str, float] | None = None
    """From infer: the same numbers of the examples of odd number, which no choice was made on."""
    events: list[dict[str, Any]] | None = None
    """Prunes and grows inside a continuous learn phase: step, and what a phase record of each would say."""
    data_sha256: str = ""
    held_out_sha256: str = ""
    """Hash of what every evaluation shows and asks, hidden tokens included; equal ones compare like with like."""
    schema: int = SCHEMA
    curve: list[dict[str, float]] = field(default_factory=list)
    """Training points: step, loss, lr, gradient_norm and, in learn, new_head_gate and new_head_multiplier of the heads
    that were grown last."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """Held-out loss on the way: step, loss, training_flops; where training.evaluate_every asks for it."""
    decision: dict[str, Any] | None = None
    """What prune removed or grow added: strategy, heads as [layer, head], and the scores it ranked."""
    regrown: list[dict[str, Any]] | None = None
    """From grow, for each slot that came back: slot, the cycles it was pruned_in and grown_in, and its init."""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    """New heads on their way through learn: step, and heads with slot, gate, weight_norm, update (norm of the change
    since the point before, None at its birth), entropy and output_norm."""
    statistics: dict[str, list[list[float | None]]] | None = None
    """Head statistics as [layer][head], None where there is no head: from prune those before it, and from measure."""
    agreement: dict[str, dict[str, float | None]] | None = None
    """Spearman correlation of each statistic with the heads' true contribution, `global` and `layer_centred`, of the
    same phases where the job asks for contributions."""
    samples: list[dict[str, Any]] | None = None
    """Greedy continuations of fixed held-out prompts: prompt, text, repetition (share of repeated 3-grams)."""

    @property
    def error_rate(self) -> float | None:
        """Share of held-out labels that the largest logit misses."""
        return None if self.accuracy is None else 1 - self.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in their order: what tables need comes first, what is bulky last; see `skim`."""
        return copy.deepcopy(vars(self))

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> PhaseRecord:
        return PhaseRecord(**_known(PhaseRecord, content))

    @staticmethod
    def skim(line: bytes, stop: str) -> dict[str, Any]:
        """Parse a record's line without the field `stop` and those after it, which may be most of its bytes."""
        head, found, _ = line.partition(f', "{stop}": '.encode())
        try:
            content = json.loads(head + b"}" if found else line)
        except ValueError:  # the name stands inside an earlier field, such as events
            return json.loads(line)
        # Where fields once stood in another order, a needed one may be behind the cut.
        return content if "trial" in content and "schema" in content else json.loads(line)

    def outcome(self) -> dict[str, Any]:
        """Return what must be equal between two runs of the same phase: all but where and how long it ran."""
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
    `fork` for a trial made from another one, `of`."""
    objective: float | None
    """The first of `objectives`."""
    attempts: int
    phases: list[str]
    """Keys of its phases, in order."""
    seconds: float
    objectives: dict[str, float] = field(default_factory=dict)
    """What the search minimizes, by name, of the phase that is its result; empty where it did not complete."""
    violations: dict[str, float] = field(default_factory=dict)
    """By how much its result misses each constraint, at most 0 where it keeps to it."""
    of: int | None = None
    """The trial that it replicates or confirms on another seed, or was forked from; see `proposer`."""
    stopped: str | None = None
    """Why a stopping rule ended it."""
    halted: dict[str, Any] | None = None
    """Why it stopped before its last cycle: rule, cycle, kept (key of the phase that is its result), reason."""
    controls: dict[str, list[str]] = field(default_factory=dict)
    """Keys of each control arm's phases, in order; those that the trial's own phases share included."""
    control_errors: dict[str, str] = field(default_factory=dict)
    """Why a control arm could not be carried out."""
    error: str | None = None
    """Why it did not complete: phase, message, and for a crash the worker's traceback."""
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(vars(self))

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> TrialRecord:
        return TrialRecord(**_known(TrialRecord, content))


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    if content.get("schema") != SCHEMA:
        raise ValueError(f"record of schema {content.get('schema')!r}; this raysweep reads schema {SCHEMA}")
    names = _field_names(kind)
    return {key: value for key, value in content.items() if key in names}


@cache
def _field_names(kind: Any) -> frozenset[str]:
    return frozenset(item.name for item in fields(kind))


def perplexity(loss: float) -> float:
    """exp(mean loss), infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def recovery(*, pruned: float, learned: float, dense: float) -> float | None:
    """(pruned - learned) / (pruned - dense) in losses: which share of what a removal cost, learning won back.

    Not clamped: below 0 learning did harm, above 1 it went beyond the dense network that learned as long. None where
    that one is no better than the pruned one: there is nothing to recover.
    """
    return None if pruned <= dense else (pruned - learned) / (pruned - dense)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial as proposed: what resume needs to run it again."""

    trial: int
    values: dict[str, Any]
    proposer: str
    attempt: int
    """1, and one more for each time that a resumed sweep took it up again."""
    seed: int
    of: int | None = None
    """The trial that this one replicates or confirms on another seed, or was forked from."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """A trial whose workers were lost: how far it had come, and where it went on."""

    trial: int
    attempt: int
    """The one that went on."""
    phase: str
    """The last training phase before the loss; empty: none had logged a step."""
    cycle: int
    reached: int
    """Last step that the phase had logged."""
    resumed_at: int
    """Step from which it went on; `reached` where the phase had ended."""
    interval: int
    """Steps between two checkpoints at that time."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A driver at work on a sweep."""

    session: str
    host: str
    pid: int
    started: float
    """Unix time."""
    seconds: float = 0.0
    """How long it has been seen at work."""
    ended: str | None = None
    """Why it ended; None: it has not, or it was killed."""
    limit: str | None = None
    """The setting of the budget that was used up."""
