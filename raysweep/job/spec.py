"""The job: what one YAML file may say, and its defaults. Each setting is documented under its field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raysweep.job import bounds
from raysweep.job.cycle import CycleSpec
from raysweep.job.search import SearchSpec
from raysweep.job.section import Name, Section, StrategySection

Masking = Literal["bert", "mask"]
MAX_LANES = 1_000
"""Each lane keeps a call waiting at the one process that hands out the trials; it is measured with so many."""


class ModelSpec(StrategySection):
    name: Name
    """The model: a from-scratch size (`raysweep list models`), a name on the Hugging Face hub, or a local folder with
    weights. A from-scratch size also takes the options of its model family."""
    task: Name | None = None
    """What the model learns: a file in raysweep/networks/tasks/ that its family supports. Default: the family's first
    task."""


class ColumnsSpec(Section):
    text: Name | None = None
    """The text, or the first sentence of a pair."""
    second: Name | None = None
    """The second sentence of a pair."""
    label: Name | None = None
    """The class, for sequence_classification."""


class DataSpec(Section):
    name: Name = "python-docs"
    """The corpus. For language modelling `python-docs`, a name on the Hugging Face hub, a text file, a table (.jsonl,
    .csv, .tsv, .parquet) with a column of texts, or a folder of either. For sequence_classification a GLUE task
    (`cola`, `sst2`, `mrpc`, ...), a table with a column of texts or two, and one of labels, or a folder of tables. For
    image_classification `digits`. See docs/data.md."""
    train: Name | None = None
    """Split to train on: a split of the hub data set, or the name of a file in the folder without its ending. Default:
    the corpus's own training split; a corpus without splits is divided by the hash of its text."""
    evaluate: Name | None = None
    """Split that a sweep chooses by, named as in `train`. Default: the corpus's own validation split; of a corpus
    without one, one part in ten of what would be trained on."""
    test: Name | None = None
    """Split that is neither trained on nor chosen by, named as in `train`. Default: the corpus's own test split, where
    it has one."""
    columns: ColumnsSpec = ColumnsSpec()
    """Columns of a table, by the names in its first line; by their numbers, from 1, where `header` is false. Default:
    those with a usual name, such as `text` and `label`."""
    header: bool = True
    """Whether the first line of a .csv or .tsv file names its columns."""
    tokenizer: Name | None = None
    """Name on the hub or folder of a tokenizer; or `wordpiece`, lower-case as BERT's, trained on the training split to
    the vocabulary size of a from-scratch model. Default: the model's own; for from-scratch models a byte-level BPE
    trained on the training split."""
    masking: Masking | None = None
    """What masked_lm does to the tokens that it hides: `bert` turns 80% into the mask token, 10% into a random token
    and leaves 10%; `mask` turns all into the mask token. Default: `bert`."""
    seq_len: int = Field(default=128, ge=8, le=bounds.WINDOW)
    """Tokens in a training window, and the most that a sentence keeps. Images ignore it: they have one token a patch
    and one for the class."""
    eval_tokens: int = Field(default=8_192, ge=8, le=bounds.TOKENS)
    """Held-out tokens that every evaluation uses: the first whole windows of the split, at most all of it. Of
    sentences, as many as it would hold windows; of images, all."""
    probe_windows: int = Field(default=8, ge=1, le=bounds.PROBES)
    """Training examples on which head statistics are measured."""
    max_tokens: int | None = Field(default=None, ge=1, le=bounds.TOKENS)
    """Training tokens to read from a corpus that is streamed (`c4`): required there, refused for others."""


class TrainingSpec(Section):
    batch_size: int = Field(default=16, ge=1, le=bounds.BATCH)
    """Examples in one optimizer step, over all workers and accumulation steps."""
    accumulation: int = Field(default=1, ge=1, le=bounds.BATCH)
    """Forward-backward passes in one optimizer step; more take less memory."""
    weight_decay: float = Field(default=0.01, ge=0, le=bounds.DECAY)
    """AdamW's decoupled weight decay, applied to matrices only."""
    clip_norm: float = Field(default=1.0, gt=0, le=bounds.NORM)
    """Norm to which larger gradients are scaled down."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of a phase's steps in which the learning rate rises linearly to its peak."""
    min_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak learning rate that the cosine falls to at the end of a phase."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of training: `bf16` is autocast to bfloat16; `auto` is bf16 on devices that support it, else
    fp32."""
    compile: bool = False
    """Compile the network with torch.compile at the start of each training phase, which takes minutes. Only for PNNs of
    a fixed depth."""
    evaluate_every: int | None = Field(default=None, ge=1, le=bounds.STEPS)
    """Steps between held-out evaluations inside a training phase; search.stopping compares trials by them. Default: no
    evaluation before the end of a phase."""


class ScaleSpec(Section):
    workers: int = Field(default=1, ge=1, le=bounds.WORKERS)
    """Worker processes of one trial; they train it together, with DDP."""
    lanes: int = Field(default=1, ge=1, le=MAX_LANES)
    """Trials that run at once, each on a group of workers that stays up from trial to trial."""
    cpus_per_worker: float = Field(default=1.0, gt=0, le=bounds.CORES)
    """CPU cores that each worker reserves."""
    gpus_per_worker: float = Field(default=0.0, ge=0, le=bounds.GPUS)
    """GPUs that each worker reserves. 0 trains on the CPU."""
    isolation: Literal["lane", "process"] = "lane"
    """`lane` runs trial after trial on the same workers. `process` starts workers for each trial, which is slow: as a
    reference, or where one trial is suspected to change the next."""
    checkpoint_every_steps: int = Field(default=200, ge=1, le=bounds.STEPS)
    """Steps between two checkpoints inside a training phase: the most that a killed worker loses."""
    lane_timeout: float = Field(default=300.0, ge=1.0, le=bounds.SILENCE_S)
    """Seconds that a lane may take from one step, batch of an evaluation or checkpoint to the next. A lane that is
    silent for longer is ended and started anew, and its trial goes on from its last checkpoint. While it loads a model
    and data, or compiles, it has four times as long; to start its workers at least 600 s."""
    max_attempts: int = Field(default=3, ge=1, le=bounds.ATTEMPTS)
    """Losses of its workers in a row, without a checkpoint or a finished phase between two of them, after which a trial
    is recorded as FAILED."""
    keep: Literal["results", "best", "all"] = "results"
    """Checkpoints that stay of trials that have ended, while the sweep runs and after: `results`, the latest and the
    best weights of each trial, without the optimizer's moments, which a fork trains anew; `best`, the weights of the
    best trials alone; `all`, all. What a trial may still need, or an export was made from, stays in any case."""


class BudgetSpec(Section):
    """Limits count over all sessions of a sweep. When one is reached, the sweep stops at a step and can be resumed."""

    hours: float | None = Field(default=None, gt=0, le=bounds.HOURS)
    """Wall time in hours. Default: no limit."""
    flops: float | None = Field(default=None, gt=0, le=bounds.FLOPS)
    """Training FLOPs, three forward passes a token; a phase that trials share counts once. Default: no limit."""
    disk_gb: float | None = Field(default=None, gt=0, le=bounds.DISK_GB)
    """Size of the sweep's folder, in 10^9 bytes. Default: no limit."""


class JobSpec(Section):
    """A job: one YAML file. Resolved, it has every default filled in and its search space inlined."""

    # A sweep's folder is named after it.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Name of the job; its sweeps are called `<name>-<number>`. At most 100 letters, digits, `-`, `_` and `.`."""
    seed: int = Field(default=0, ge=0, le=bounds.SEED)
    """Seed of everything random in the trials: weights, data order, random choices of heads."""
    model: ModelSpec
    """The network."""
    data: DataSpec = DataSpec()
    """What it is trained and evaluated on."""
    training: TrainingSpec = TrainingSpec()
    """How every training phase trains."""
    cycle: CycleSpec
    """What a trial does to its network: a baseline, then prune, measure, grow and learn, `cycles` times."""
    search: SearchSpec | None = None
    """What is searched, and how results are compared. Default: a single trial, of the job as it is."""
    scale: ScaleSpec = ScaleSpec()
    """Workers, and how many trials run at once."""
    budget: BudgetSpec = BudgetSpec()
    """Limits after which the sweep stops. Default: no limit."""

    def resolved(self) -> dict[str, Any]:
        """Return the job as a plain mapping that parses back to an equal job."""
        # null is the default of every setting that may be null, so leaving it out changes nothing and reads better.
        return self.model_dump(mode="json", exclude_none=True)
