"""Ask an exit rule after each step which tokens leave, and keep the predictions that it was shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raysweep.contracts import Batch, Exit, ExitLook
from raysweep.networks.pnn.network import PnnPredictor


class ExitDecisions:
    """An exit rule applied to one batch, step by step: its memory, and the predictions it has looked at.

    Args:
        shape: (batch, tokens).
        seeds: one for each example, for a rule that leaves by chance.
    """

    def __init__(
        self, network: PnnPredictor, rule: Exit, batch: Batch, shape: Sequence[int],
        *, steps: int, min_steps: int, seeds: Sequence[int],
    ) -> None:  # fmt: skip
        self.network, self.rule, self.steps, self.min_steps = network, rule, steps, min_steps
        count, self.tokens = shape[0] * shape[1], shape[1]
        places = torch.arange(count, device=batch.labels.device)
        # Sending the flat positions through `predicted_from` finds which places are predicted from, for a
        # masked language model and for a classifier alike.
        self.predicted = network.predicted_from(places.view(*shape, 1), batch.labelled).flatten()
        """Places whose tokens are predicted from, in the order of the logits."""
        self.by_prediction = rule.reads == "predictions"
        self.asked = torch.zeros(count, dtype=torch.bool, device=places.device)
        """Whether a rule that reads predictions is asked about a place."""
        self.asked[self.predicted] = True
        self.memory = torch.zeros(count, dtype=torch.float64, device=places.device)
        # The inverse of `predicted`: place -> index among the predicted ones. Its zeros elsewhere are never
        # read.
        self.slot = torch.zeros_like(places)
        self.slot[self.predicted] = torch.arange(len(self.predicted), device=places.device)
        self.known = torch.zeros(len(self.predicted), dtype=torch.bool, device=places.device)
        """Predicted tokens that have left by their prediction: their row of `latest` is final."""
        self.latest: torch.Tensor | None = None
        """Logits that the rule looked at last, (predicted, classes)."""
        self.chance = torch.zeros(0)
        if rule.reads == "chance":
            # One draw a token for all steps, from the example's own seed: independent of the batch an example
            # is in.
            draws = [np.random.default_rng(seed).random(self.tokens) for seed in seeds]
            self.chance = torch.from_numpy(np.concatenate(draws)).to(places.device)

    def leaving(self, step: int, at: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Return which of the tokens at some places leave after a step, (places,).

        Args:
            step: steps done, from 1.
            at: places of the remaining tokens.
            before, after: their states around the step, (places, width).
        """
        leaving = torch.zeros_like(at, dtype=torch.bool)
        # A rule that compares steps needs looks before the first possible exit; earlier ones would only cost.
        if step + self.rule.looks_back < self.min_steps:
            return leaving
        of = self.asked[at] if self.by_prediction else slice(None)
        asked, state = at[of], after[of]
        look = ExitLook(step=step, steps=self.steps, min_steps=self.min_steps, before=before[of], after=state,
                    memory=self.memory[asked], **self._read(asked, state))  # fmt: skip
        leaves, self.memory[asked] = self.rule(look)
        # The rule has filled its memory, but nothing may leave yet.
        if step < self.min_steps:
            return leaving
        leaving[of] = leaves
        if self.by_prediction:
            self.known[self.slot[asked[leaves]]] = True
            # The other tokens serve only as context for predicted ones: a row without a predicted token that
            # stays leaves whole. That includes rows in which nothing is predicted.
            leaving |= ~torch.isin(at // self.tokens, asked[~leaves] // self.tokens)
        return leaving

    def _read(self, asked: torch.Tensor, state: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Return what the rule reads besides states: chance, exit logits, or predictions now and at its last look."""
        if self.rule.reads == "chance":
            return {"chance": self.chance[asked]}
        if self.rule.reads == "exit_head":
            return {"leave": self.network.exit_head(state).squeeze(-1)}
        if not self.by_prediction:
            return {}
        logits, slots = self.network.predict(state), self.slot[asked]
        before = None if self.latest is None else self.latest[slots]
        if self.latest is None:
            self.latest = logits.new_zeros(len(self.predicted), logits.shape[-1])
        # `before` was gathered by index, so it is a copy that this write leaves alone.
        self.latest[slots] = logits
        return {"logits": logits, "logits_before": before}

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the predictions from the last states of tokens; those that a rule has looked at are reused."""
        # A token that left by its prediction was looked at in its last state. Predicting it again would cost a
        # vocabulary head: at the published size, as much as 3.4 steps of the refiner (pnn.md, section 8).
        logits = self.network.predict(states[self.predicted[~self.known]])
        if self.latest is None:
            return logits
        return self.latest.index_copy(0, (~self.known).nonzero().flatten(), logits)
