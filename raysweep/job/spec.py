"""The job: what one YAML file may say, and its defaults. Each setting is documented under its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

Masking = Literal["bert", "mask"]
Control = Literal["dense", "no_regrow", "random_random", "rewind", "from_scratch_small"]
Objective = Literal["loss", "perplexity", "error_rate", "flops_per_token", "params", "active_heads"]
Objectives = Annotated[
    Annotated[Objective, Tag("one")] | Annotated[tuple[Objective, ...], Tag("several")],
    Discriminator(lambda given: "several" if isinstance(given, list | tuple) else "one"),
]
MEASURED = (*get_args(Objective), "accuracy")
"""Numbers of every phase record that a constraint may name."""


class Part(BaseModel):
    """One section of a job: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StrategyPart(BaseModel):
    """A section that names a strategy: keys beyond its fields are that strategy's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ModelSpec(StrategyPart):
    name: str
    """A from-scratch size (`raysweep list models`), a hub name, or a local folder with weights. A size takes the
    options of its family, the fields of `Family` in its file in raysweep/networks/models/."""
    task: str | None = None
    """a file in raysweep/networks/tasks/ that the model's family can learn. Default: the family's first."""


class DataSpec(Part):
    name: str = "python-docs"
    """`python-docs`, a hub name, a text file, or a folder of text files; for sequence_classification the name of a task
    of GLUE (`cola`, `sst2`, `mrpc`, ...), a .tsv or .csv file with the columns `sentence` and `label`, or `sentence1`,
    `sentence2` and `label`, or a folder of them; for image_classification `digits`."""
    train: str | None = None
    """Split to train on: a hub split, or the stem of a file in the folder. Default: the corpus's own, else by hash."""
    evaluate: str | None = None
    """Split that held-out numbers come from; as `train`."""
    tokenizer: str | None = None
    """Hub name or folder of a tokenizer; or `wordpiece`: BERT's kind, lower-case, trained on the training split to the
    vocabulary of a from-scratch size. Default: the model's own; for from-scratch sizes a byte-level BPE trained on the
    training split, which knows every text."""
    masking: Masking | None = None
    """Of masked_lm, what the chosen tokens become: `bert`, 80% the mask, 10% a random token, 10% themselves; or `mask`,
    always the mask. Default: `bert`."""
    seq_len: int = Field(default=128, ge=8)
    """Tokens in a window, at most so many of a sentence. An image has as many as its patches and its class."""
    eval_tokens: int = Field(default=8_192, ge=8)
    """Held-out tokens that every evaluation uses: the first whole windows of the split, at most all of it; of
    sentences as many as windows; of images all."""
    probe_windows: int = Field(default=8, ge=1)
    """Training examples that head statistics are measured on."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Training tokens to take from a streamed corpus (`c4`); required there, refused elsewhere."""


class TrainingSpec(Part):
    batch_size: int = Field(default=16, ge=1)
    """Examples in one optimizer step, over all workers and accumulation steps."""
    accumulation: int = Field(default=1, ge=1)
    """Forward-backward passes in one optimizer step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled decay, on matrices only."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of a phase's steps in which the learning rate rises from 0."""
    min_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of a phase's learning rate that its cosine falls to."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 autocast on devices that have it, fp32 elsewhere."""
    compile: bool = False
    """Compile the network with torch.compile at the start of each training phase, which takes minutes. Networks of pnn
    with a fixed depth only."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between held-out evaluations inside a training phase, which stopping rules judge by. Default: none."""


class BaselineSpec(Part):
    steps: int = Field(gt=0)
    lr: float = Field(gt=0)


class PruneSpec(StrategyPart):
    strategy: str
    """A file in raysweep/strategies/prune/, or a dotted module."""
    level: float = Field(gt=0, lt=1)
    """Share of all the model's head slots that one cycle removes; round-half-up, exact."""
    budget: Literal["global", "per_layer"] = "global"
    """Rank all heads together, or give each layer an equal share."""
    normalize: Literal["none", "layer"] = "none"
    """`layer` divides each layer's scores by their l2 norm first."""
    rounds: int = Field(default=1, ge=1)
    """Remove in so many rounds, and score the heads that are left anew before each."""
    unit: Literal["head", "group", "equal"] = "head"
    """What goes at once where query heads share key/value heads: any query head, a whole group, or one head of every
    group, which keeps groups equally large. The same on other models."""
    min_heads_per_layer: int = Field(default=1, ge=1)
    grace_cycles: int = Field(default=1, ge=0)
    """Cycles for which a grown head cannot be pruned."""
    contribution: bool = False
    """Measure each head's true contribution first, one forward pass a head, and how far every score agrees with it."""


class MeasureSpec(Part):
    contribution: bool = False
    """The same of the heads that are left."""


class GrowSpec(StrategyPart):
    strategy: str
    """A file in raysweep/strategies/grow/, or a dotted module."""
    ratio: float = Field(ge=0, le=1)
    """Share of the heads removed in this cycle that are grown back; round-half-up, exact."""
    init: str = "zero_output"
    """A file in raysweep/strategies/init/, or a dotted module."""


class LearnSpec(Part):
    steps: int = Field(gt=0)
    lr: float = Field(gt=0)
    new_head_lr_multiplier: float = Field(default=1.0, ge=1)
    """Scales the optimizer's update on the slices of each new head; decays to 1."""
    multiplier_decay_steps: int | None = Field(default=None, ge=1)
    """Steps of the multiplier's cosine back to 1, from each head's own birth. Default: to the end of the phase."""
    gate_warmup_steps: int = Field(default=0, ge=0)
    """Steps, from its own birth, in which the gate of a new head rises linearly from `gate_start` to 1."""
    gate_start: float = Field(default=0.1, gt=0, le=1)
    seed_second_moments: bool = True
    """Give new slices the mean second moment of their peers, so that no update is hidden-boosted by a reset."""
    trajectory_every: int | None = Field(default=None, ge=1)
    """Steps between looks at each new head on its way; its birth and the last are always there. Default: a quarter of
    the phase, or of the time between two events."""


class InferSpec(StrategyPart):
    """The last phase of a trial: the network is measured with tokens leaving it, which changes no weight.

    It takes a network that applies one module again and again. Searched by its result are the held-out examples of even
    number; its record says `reported` what the odd ones give, which no choice was made on.
    """

    exit: str = "none"
    """A file in raysweep/strategies/exits/, or a dotted module."""
    steps: int = Field(ge=1)
    """After so many every token leaves; more or fewer than in training."""
    min_steps: int = Field(default=1, ge=1)
    """Before so many none does."""


class ContinuousSpec(Part):
    """Prune and grow inside the learn phase instead of before it: no restart, the optimizer's state carried on.

    Each head's gate and multiplier follow a clock of its own from its birth, whatever later events do to others. A head
    that is pruned ends; grown again, it begins anew.
    """

    every: int = Field(ge=1)
    """Training steps between two events."""
    first: int = Field(default=0, ge=0)
    """Training step before which the first event happens."""
    events: int | None = Field(default=None, ge=1)
    """Default: as many as fit into the learn phase."""
    remove: int | None = Field(default=None, ge=1)
    """Heads to remove in each event. Default: as cycle.prune.level says."""
    grow: int | None = Field(default=None, ge=0)
    """Heads to grow in each event. Default: as cycle.grow.ratio says."""


class RegressionSpec(Part):
    """When a cycle has done too much damage: both must be exceeded, against the best end of a cycle so far."""

    ratio: float = Field(default=1.10, ge=1)
    margin: float = Field(default=1.0, ge=0)


class PlateauSpec(Part):
    patience: int = Field(default=2, ge=1)
    """Cycles that may pass without enough gain."""
    min_gain: float = Field(default=0.01, gt=0, lt=1)
    """Share of perplexity that counts as a gain."""


class CycleSpec(Part):
    cycles: int = Field(default=1, ge=1)
    """How often prune, measure, grow and learn are repeated."""
    level_escalation: float = Field(default=0.0, ge=0, lt=1)
    """Added to prune.level with every further cycle."""
    regression: RegressionSpec | None = None
    """Halt after a cycle whose perplexity regressed; the trial's result is the last good phase."""
    plateau: PlateauSpec | None = None
    """Halt after cycles that no longer help."""
    continuous: ContinuousSpec | None = None
    baseline: BaselineSpec | None = None
    """Training before the first prune. Without it the model is measured as it is."""
    prune: PruneSpec | None = None
    measure: MeasureSpec = MeasureSpec()
    grow: GrowSpec | None = None
    learn: LearnSpec | None = None
    infer: InferSpec | None = None
    """Measure at the end with tokens leaving early; the trial's result."""

    @model_validator(mode="after")
    def _something_to_do(self) -> CycleSpec:
        if not (self.baseline or self.prune or self.learn):
            raise ValueError("nothing to do: name at least one of baseline, prune, learn")
        return self


class SamplerSpec(StrategyPart):
    name: str = "tpe"
    """A file in raysweep/strategies/samplers/, or a dotted module."""


class StoppingSpec(StrategyPart):
    name: str = "none"
    """A file in raysweep/strategies/schedulers/, or a dotted module."""


class SearchSpec(Part):
    space: str | dict[str, Any] | None = None
    """A file (looked for from the working folder, the job's folder and the one above), or the space itself.
    Without it, there is a single trial."""
    trials: int = Field(default=1, ge=1)
    minimize: Objectives = "loss"
    """What the search minimizes, of the phase that is a trial's result. Several: the best are a Pareto front."""
    constraints: tuple[str, ...] = ()
    """What a trial must keep to, such as `perplexity <= 1.1 * baseline.perplexity`: numbers of its result, and of its
    last phase of a kind where one is named. A trial that does not is COMPLETE, but no best one."""
    sampler: SamplerSpec = SamplerSpec()
    stopping: StoppingSpec = StoppingSpec()
    seeds: int = Field(default=1, ge=1)
    """Seeds of each point: the job's own for the search, then as many more, from it on, for the `top` points. The
    winner is then run on as many fresh ones before it is called the winner."""
    top: int | None = Field(default=None, ge=1)
    """Points that are run on all seeds, the best of the search. Default: all of them."""
    controls: tuple[Control, ...] = ()
    """Arms that every trial runs beside its own phases, on the same data in the same order; what is equal is shared.
    `dense` trains on for the same steps without pruning; recovery is measured against it. `no_regrow` prunes only.
    `random_random` prunes and grows at random. `rewind` grows with stored weights. `from_scratch_small` trains a new
    model with as many heads in each layer as the trial ends with, for all its steps."""

    @field_validator("space", mode="before")
    @classmethod
    def _file_or_space(cls, space: Any) -> Any:
        if not isinstance(space, str | Mapping | None):
            raise ValueError("must be the path of a search-space file, or the space itself")
        return space


class ScaleSpec(Part):
    workers: int = Field(default=1, ge=1)
    """DDP ranks of one trial."""
    lanes: int = Field(default=1, ge=1)
    """Trials that run at once, each in a warm worker group."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    isolation: Literal["lane", "process"] = "lane"
    """`process` gives each trial a Ray Train run of its own: slow, for suspected leaks and as a reference."""
    checkpoint_every_steps: int = Field(default=200, ge=1)
    """Steps between checkpoints inside a training phase: what a killed worker can lose at most."""
    max_attempts: int = Field(default=3, ge=1)
    """Worker-group losses after which a trial is recorded as FAILED."""


class BudgetSpec(Part):
    """What a sweep may use, over all its sessions; when one is used up it stops at a step, resumable."""

    hours: float | None = Field(default=None, gt=0)
    """Wall time."""
    flops: float | None = Field(default=None, gt=0)
    """Training FLOPs, three forward passes' worth a token; what trials share counts once."""
    disk_gb: float | None = Field(default=None, gt=0)
    """Size of the sweep's folder, in 10^9 bytes."""


class JobSpec(Part):
    """A job, resolved: every default filled in, the search space inlined."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    seed: int = Field(default=0, ge=0)
    model: ModelSpec
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    cycle: CycleSpec
    search: SearchSpec | None = None
    scale: ScaleSpec = ScaleSpec()
    budget: BudgetSpec = BudgetSpec()

    def resolved(self) -> dict[str, Any]:
        """Return the job as a plain mapping that parses back to an equal job."""
        return self.model_dump(mode="json", exclude_none=True)
