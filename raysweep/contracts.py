"""Every contract between folders, on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from raysweep.spec import Masking

if TYPE_CHECKING:
    import optuna
    import torch
    from torch import nn

    from raysweep.findings.finding import Finding
    from raysweep.findings.subject import Subject
    from raysweep.plasticity.sites import AttentionSite, Role
    from raysweep.space import Space

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Slot = tuple[int, int]
"""(layer, head), by original position; never renumbered."""
Examples = npt.NDArray[Any]
"""One row of integers an example; its task knows how to read it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a network takes, and what it should predict."""

    inputs: torch.Tensor
    """The network's main input: token ids (batch, tokens), or pixels (batch, channels, height, width)."""
    labels: torch.Tensor
    """The class to predict at each position of the logits, (batch, positions) or (batch,); -100 where there is none."""
    attention_mask: torch.Tensor | None = None
    """(batch, tokens): 0 at padding. None: nothing is padded."""
    token_types: torch.Tensor | None = None
    """(batch, tokens): the segment that each token is of. None: all are of the first."""
    labelled: torch.Tensor | None = None
    """Flat positions, among (batch, tokens), of the labels that there are: logits elsewhere need not be computed. None:
    there is a label nearly everywhere, or one an example."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a task and a network must know of the data; None where the data has no such thing."""

    vocab_size: int | None = None
    mask_token: int | None = None
    """Id of the token that hides another one."""
    pad_token: int | None = None
    """Id of the token that fills a row after its text."""
    special_tokens: tuple[int, ...] = ()
    """Ids of the tokens that stand for no text, and of the one that stands for unknown text: never hidden."""
    masking: Masking = "bert"
    """What tokens that are to be predicted become; see data.masking."""
    num_classes: int | None = None
    pairs: bool = False
    """Every example is a pair of sentences: its tokens are of two segments."""
    image_shape: tuple[int, int, int] | None = None
    """(channels, height, width)"""
    brightest: int | None = None
    """Largest value of a pixel; the smallest is 0."""


class Task(Protocol):
    """tasks/<name>.py: what a model learns, from a row of integers to inputs and labels. Its one field is `facts`."""

    reads: ClassVar[Literal["windows", "sentences", "images"]]
    """The kind of data it learns from. A row of integers is: tokens; label, number of tokens, number of tokens before
    the second sentence of a pair, tokens and padding; label, pixels by channel, row and column."""
    needs: ClassVar[tuple[str, ...]]
    """The facts without which it cannot be learnt."""
    new_head: ClassVar[bool]
    """A pretrained network may lack the layers after its trunk: they are then drawn at random."""
    model_class: ClassVar[str]
    """The automatic class of transformers that builds its networks."""
    causal: ClassVar[bool]
    """No position may see a later one."""
    even: ClassVar[bool]
    """Every example has equally many labels."""
    predicted: ClassVar[float]
    """Share of positions whose logits are computed."""
    facts: Facts

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        """Return examples as a batch, on the processor; what is random follows from each example's seed."""


class Family(Protocol):
    """models/<model_type>.py: one architecture of transformers, by its `model_type`."""

    tasks: ClassVar[tuple[str, ...]]
    """What its networks can learn, as files in tasks/; the first one unless a job says otherwise."""
    sizes: ClassVar[dict[str, dict[str, Any]]]
    """From-scratch sizes: name -> configuration values; with the largest vocabulary, for text."""

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        """Return the transformers configuration of a from-scratch size, dropout off."""

    # A family with networks that apply one module again and again names these forms: `recurrent_trunks`.
    # A family whose position table has rows before the first token's says how many: `reserved_positions(config)`.
    # A family whose networks torch.compile takes whole says so: `compiles`.

    def sites(self, network: nn.Module) -> list[AttentionSite]:
        """Return one site per layer, parameter names as in `network.named_parameters()`."""

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        """Set what one layer's attention module knows of its head counts besides its weights, after compaction."""


@dataclass(frozen=True, kw_only=True)
class HeadStatistics:
    """What the probe measured on every head slot; arrays of shape [layers][heads].

    `present` says which slots hold a head. Statistics of absent slots are those of the weights that stand there,
    as if the head were there alone; `sensitivity` is only filled when a growth asks for it.
    """

    present: Mask
    taylor: Array
    """E over windows of |d(mean window loss) / d(gate)|."""
    fisher: Array
    """E over windows of (d(mean window loss) / d(gate))^2; half of it is a removal's cost at a stationary point."""
    signed_taylor: Array
    """-E over windows of d(mean window loss) / d(gate): to first order, a removal's cost with its sign."""
    entropy: Array
    """Mean over queries with at least two visible keys of H / log(visible keys); in [0, 1]."""
    sink_mass: Array
    """Mean attention weight on the first token, over the same queries."""
    sink_free_entropy: Array
    """As `entropy`, of the weights on all keys but the first token, over queries with at least three visible keys."""
    output_norm: Array
    """Mean over tokens of the norm of the head's contribution to the layer's output."""
    magnitude: Array
    """Frobenius norm of [W_Q, W_K, W_V, W_O^T]; see plasticity/magnitude.py for the three."""
    magnitude_ov: Array
    """Frobenius norm of diag(g) W_V W_O, g the gain of the norm in front."""
    magnitude_qk: Array
    """Frobenius norm of diag(g) W_Q W_K^T diag(g)."""
    contribution: Array | None = None
    """Mean over windows of the loss without the head minus the loss with it; only filled when asked for."""
    reference_entropy: Array | None = None
    """Entropy of every head just before this cycle's prune."""
    sensitivity: Array | None = None
    """How much an absent slot would lower the loss if its proposed weights came in; see grow/gradient_sensitivity."""


class Pruner(Protocol):
    """prune/<name>.py"""

    @property
    def requires(self) -> tuple[str, ...]:
        """Statistics that it reads and that are only measured when asked for: `contribution`. May be left out."""

    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        """Return importance [layers][heads]; the lowest present ones are removed first. Never acts."""


class Grower(Protocol):
    """grow/<name>.py"""

    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        """Return exactly `count` distinct absent slots, best first. Never acts."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a sampler may know of the one point that it is asked for. It keeps no state: it is built anew for each."""

    trial: int
    """Number of the trial, from 1."""
    seed: int
    """For this point alone: another one for each trial, and whenever a trial's point is drawn anew."""
    sequence: int
    """A seed that all trials share, another one when a trial's point is drawn anew."""
    space: Space
    job: Mapping[str, Any]
    """The job, resolved: what conditions on its own settings are judged by."""
    told: Sequence[tuple[Mapping[str, Any], tuple[float, ...]]]
    """Values and objectives of each completed trial, in the order in which they were told."""
    is_open: Callable[[Mapping[str, Any]], bool]
    """Whether a point is allowed and no trial has it yet."""


TOLD = "told"
"""Attribute of an ended trial in the study that Optuna samplers see: its place in the order of results."""
DIVERGED = "diverged"
"""Attribute of an ended trial in that study: whether it failed by its values, its loss being no number any more."""
SearchFeature = Literal["choice", "condition", "continuous", "strategies", "objectives", "constraints"]
"""A choice, a parameter under a condition, a continuous one; strategies of which none is chosen; several objectives;
constraints on results."""


class Sampler(Protocol):
    """samplers/<name>.py"""

    cannot: ClassVar[tuple[SearchFeature, ...]]
    """What a search may not ask of it: refused before anything runs. May be left out."""
    whole: ClassVar[bool]
    """It learns from points that all have the same parameters: one that does not exist in a trial counts as if it had
    its first value. May be left out."""

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler | Mapping[str, Any] | None:
        """Return the Optuna sampler that draws the point, seeded; or the point itself, a value for every parameter
        that exists in it, others being left unread; or None where there is none left."""


SensitivityForm = Literal["gate", "output", "gradmax"]
"""Which gradient tells how much a new head would help; see plasticity/probe and plasticity/growth_probe."""


@dataclass(frozen=True, kw_only=True)
class NewSlice:
    """One tensor of a new head, whatever the layout of its layer, and what it may be filled from."""

    role: Role
    weights: torch.Tensor
    """To be filled in place: a view of shape (head_dim, width), or (head_dim,) for a bias."""
    std: float
    """The model's own initializer range."""
    generator: torch.Generator
    """Of this slice alone, on the processor: order and company of new heads do not matter."""
    given: torch.Tensor | None = None
    """What the initializer needs, of the shape of `weights`: the donor's slice, a view to be changed in place; the
    weights of this slice right before it was last removed; for value weights only, their directions, scaled."""


class Initializer(Protocol):
    """init/<name>.py"""

    forms: ClassVar[tuple[SensitivityForm, ...]]
    """Forms of gradient_sensitivity that are not blind under it; the first is the default."""
    needs: ClassVar[Literal["nothing", "donor", "stored", "directions"]]
    """What is `given` with every slice."""

    def __call__(self, new: NewSlice) -> None:
        """Fill one slice of a new head. A shared key or value is only filled where its whole group was absent.

        Moments of the slice are zero, or seeded from its peers where `cycle.learn.seed_second_moments` says so.
        """


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a trial stands at a held-out evaluation inside a training phase that is judged.

    Judged are learn phases; in a job without them, the baseline. Never a phase right after a prune.
    """

    trial: int
    phase: str
    cycle: int
    step: int
    """Optimizer steps finished in the phase."""
    flops: float
    """Training FLOPs that the trial has spent in its judged phases, three forward passes' worth a token, absent heads
    left out."""
    share: float
    """`flops` as a share of what all judged phases of the trial would take with every head there; a pruned model's
    steps are cheaper, so its share is below 1 even at the end."""
    loss: float
    """Held-out loss; finite."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a worker is told to do with its trial.

    A stopping rule says `go` on, `stop` for good, or `pause` until it decides. Beside rules there are `wait`: another
    trial is running the phase that comes next; and `leave`: the sweep ends here, to be resumed.
    """

    action: Literal["go", "stop", "pause", "wait", "leave"]
    reason: str = ""


GO = Decision(action="go")


class StoppingRule(Protocol):
    """Judges the trials of one sweep as they report. Told the same in the same order, it decides the same."""

    def report(self, report: Report) -> Decision: ...

    def ended(self, trial: int) -> None:
        """Take note that a trial has ended, however: no report of it is to come."""

    def decided(self) -> dict[int, Decision]:
        """Return, once each, the paused trials that may now `go` on, and those that are to `stop`."""


class Scheduler(Protocol):
    """schedulers/<name>.py: a rule of early stopping, its options as fields."""

    def build(self, trials: int) -> StoppingRule:
        """Return the rule for a sweep of so many trials."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an exit rule may know, after a step, of the tokens that it is asked about: a row for each token."""

    step: int
    """Steps done, from 1."""
    steps: int
    """After so many every token leaves."""
    min_steps: int
    """Before so many none does."""
    before: torch.Tensor
    """States before the step, (tokens, width)."""
    after: torch.Tensor
    memory: torch.Tensor
    """A number of the rule's own for each token, 0 at first; (tokens,)."""
    logits: torch.Tensor | None = None
    """What is predicted from `after`, (tokens, classes); where the rule reads predictions."""
    logits_before: torch.Tensor | None = None
    """What it saw in its look before; None in the first."""
    leave: torch.Tensor | None = None
    """The exit head's logits of leaving now, (tokens,); where the rule reads them."""
    chance: torch.Tensor | None = None
    """One even draw from [0, 1) for each token, the same at every step; where the rule reads it."""


class Exit(Protocol):
    """exits/<name>.py: when a token leaves a network that applies one module again and again."""

    reads: ClassVar[Literal["states", "predictions", "exit_head", "chance"]]
    """What it looks at. One that reads predictions is asked about the tokens that are predicted from alone, since a
    look costs as much as a prediction; any other about every token."""
    looks_back: float
    """How many steps before the first possible exit it begins to look."""

    def __call__(self, look: Look) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens leave, and what to remember of each; (tokens,) both."""


class Analysis(Protocol):
    """analyses/<name>.py: one experiment on a Plastic Neural Network."""

    aliases: ClassVar[tuple[str, ...]]
    """Other names of it, such as the one in the published code."""

    def passes(self, subject: Subject) -> int:
        """Return how often all held-out text runs through a network: what the estimate of its time is made from."""

    def __call__(self, subject: Subject) -> Finding:
        """Measure; the subject stays as it is.

        Raises:
            NotApplicableError: the network lacks what is measured.
        """
