"""The `cycle` section of a job: what a trial does to its network, phase by phase."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raysweep.job import bounds
from raysweep.job.section import Name, Section, StrategySection


class BaselineSpec(Section):
    steps: int = Field(gt=0, le=bounds.STEPS)
    """Optimizer steps."""
    lr: float = Field(gt=0, le=bounds.RATE)
    """Peak learning rate: reached after the warm-up (training.warmup_fraction), then lowered by a cosine."""


class PruneSpec(StrategySection):
    strategy: Name
    """What scores the heads: a file in raysweep/strategies/prune/, or the dotted name of a module. The heads with the
    lowest scores are removed."""
    level: float = Field(gt=0, lt=1)
    """Share of all head slots of the model that one cycle removes. The number of heads is rounded half up, and it is
    exact: a number that cannot be removed is an error."""
    budget: Literal["global", "per_layer"] = "global"
    """`global` ranks all heads together; `per_layer` removes an equal share of each layer."""
    normalize: Literal["none", "layer"] = "none"
    """`layer` divides the scores of each layer by their l2 norm before heads are ranked; `none` ranks them as they
    are."""
    rounds: int = Field(default=1, ge=1, le=bounds.CYCLES)
    """Rounds in which the heads of one cycle are removed. The remaining heads are scored anew before each round."""
    unit: Literal["head", "group", "equal"] = "head"
    """What is removed at once where several query heads share one key/value head: `head`, any query head; `group`, all
    query heads of a key/value head; `equal`, one query head of every group of a layer, which keeps the groups equally
    large. Makes no difference to models whose heads share nothing."""
    min_heads_per_layer: int = Field(default=1, ge=1, le=bounds.HEADS)
    """Heads that always stay in each layer."""
    grace_cycles: int = Field(default=1, ge=0, le=bounds.CYCLES)
    """Cycles after its growth in which a head cannot be pruned; with cycle.continuous, each event counts as a cycle."""
    contribution: bool = False
    """Before pruning, measure the true contribution of each head, the rise of the loss without it, and how well every
    score agrees with it. Takes one more forward pass a head."""


class MeasureSpec(Section):
    contribution: bool = False
    """Measure the true contribution of each remaining head, as cycle.prune.contribution does for all heads before
    pruning."""


class GrowSpec(StrategySection):
    strategy: Name
    """What chooses the slots in which heads are grown: a file in raysweep/strategies/grow/, or the dotted name of a
    module."""
    ratio: float = Field(ge=0, le=1)
    """Share of the heads removed in this cycle that are grown back; the number of heads is rounded half up, and it is
    exact."""
    init: Name = "zero_output"
    """What sets the first weights of new heads: a file in raysweep/strategies/init/, or the dotted name of a module."""


class LearnSpec(Section):
    steps: int = Field(gt=0, le=bounds.STEPS)
    """Optimizer steps."""
    lr: float = Field(gt=0, le=bounds.RATE)
    """Peak learning rate: reached after the warm-up (training.warmup_fraction), then lowered by a cosine."""
    new_head_lr_multiplier: float = Field(default=1.0, ge=1, le=bounds.MULTIPLIER)
    """Factor on the optimizer's update of each new head's weights, from its birth on; falls to 1 by half a cosine. 1
    treats new heads like all others."""
    multiplier_decay_steps: int | None = Field(default=None, ge=1, le=bounds.STEPS)
    """Steps from a head's birth until its multiplier is 1. Default: until the end of the phase."""
    gate_warmup_steps: int = Field(default=0, ge=0, le=bounds.STEPS)
    """Steps from a head's birth in which its gate, a factor on its output, rises linearly from `gate_start` to 1. 0
    opens it at once."""
    gate_start: float = Field(default=0.1, gt=0, le=1)
    """Gate of a new head at its birth; has an effect only with `gate_warmup_steps`."""
    seed_second_moments: bool = True
    """Start the second moments of Adam for a new head at the mean of the heads beside it. With false they start at 0,
    which makes its first updates several times too large."""
    trajectory_every: int | None = Field(default=None, ge=1, le=bounds.STEPS)
    """Steps between two records of each new head's weights and attention; its first and last step are always recorded.
    Default: a quarter of the phase, or of the time between two events of cycle.continuous."""


class InferSpec(StrategySection):
    """Needs a network that applies one module several times (a PNN); changes no weight.

    The search sees the results on held-out examples of even number; the record's `reported` holds those of odd number,
    on which nothing was chosen.
    """

    exit: Name = "none"
    """What decides when a token leaves: a file in raysweep/strategies/exits/, or the dotted name of a module."""
    steps: int = Field(ge=1, le=bounds.LAYERS)
    """Applications of the module after which every token leaves; may be more or fewer than in training."""
    min_steps: int = Field(default=1, ge=1, le=bounds.LAYERS)
    """Applications of the module before which no token leaves."""


class ContinuousSpec(Section):
    """Events inside the learn phase do not restart its optimizer.

    The gate and the multiplier of each head count from the head's own birth, whatever later events do to other heads. A
    head that is pruned and grown again starts anew.
    """

    every: int = Field(ge=1, le=bounds.STEPS)
    """Training steps between two events. One event prunes, measures and grows."""
    first: int = Field(default=0, ge=0, le=bounds.STEPS)
    """Training step before which the first event takes place."""
    events: int | None = Field(default=None, ge=1, le=bounds.CYCLES)
    """Number of events. Default: as many as fit into the learn phase."""
    remove: int | None = Field(default=None, ge=1, le=bounds.HEADS)
    """Heads to remove in each event. Default: the number that cycle.prune.level stands for."""
    grow: int | None = Field(default=None, ge=0, le=bounds.HEADS)
    """Heads to grow in each event. Default: the number that cycle.grow.ratio stands for."""


class RegressionSpec(Section):
    """The perplexity at the end of the cycle must exceed both limits."""

    ratio: float = Field(default=1.10, ge=1, le=bounds.PERPLEXITY)
    """Factor by which perplexity must exceed the lowest at the end of an earlier cycle."""
    margin: float = Field(default=1.0, ge=0, le=bounds.PERPLEXITY)
    """Perplexity by which it must exceed the lowest at the end of an earlier cycle."""


class PlateauSpec(Section):
    patience: int = Field(default=2, ge=1, le=bounds.CYCLES)
    """Last cycles that are compared with all cycles before them."""
    min_gain: float = Field(default=0.01, gt=0, lt=1)
    """Share of the lowest earlier perplexity by which the last cycles must have lowered it; less ends the trial."""


class CycleSpec(Section):
    cycles: int = Field(default=1, ge=1, le=bounds.CYCLES)
    """How often prune, measure, grow and learn are repeated."""
    level_escalation: float = Field(default=0.0, ge=0, lt=1)
    """Added to prune.level with each further cycle."""
    regression: RegressionSpec | None = None
    """End the trial after a cycle that did too much damage; its result is then the end of the cycle before. Default:
    never."""
    plateau: PlateauSpec | None = None
    """End the trial after cycles that no longer help. Default: never."""
    continuous: ContinuousSpec | None = None
    """Prune and grow inside the learn phase instead of before it. Default: before it."""
    baseline: BaselineSpec | None = None
    """Train all heads before the first prune. Default: the model is measured as it is."""
    prune: PruneSpec | None = None
    """Remove heads. Default: none are removed, and nothing is grown."""
    measure: MeasureSpec = MeasureSpec()
    """What is measured after a prune beside the loss; changes no weight."""
    grow: GrowSpec | None = None
    """Grow heads in empty slots after each prune. Default: none are grown."""
    learn: LearnSpec | None = None
    """Train the network that pruning and growth have left. Default: no training."""
    infer: InferSpec | None = None
    """At the end, evaluate the network while tokens leave it early; this is then the trial's result. Default: no such
    phase."""

    @model_validator(mode="after")
    def _something_to_do(self) -> CycleSpec:
        # grow and infer need one of these; other rules between sections are in checks/rules.py.
        if not (self.baseline or self.prune or self.learn):
            raise ValueError("nothing to do: add at least one of baseline, prune, learn")
        return self
