"""AdamW over head slices: absent ones stay exactly zero, and new ones take larger updates, scaled by generation.

A higher learning rate for some slices of a fused tensor must scale the *update*. Scaling the gradient does nothing
under Adam, which divides it out again. AdamW computes p <- (1 - lr decay) p - lr u, where the update u depends on
gradients alone. So a step between two multiplications, p <- m ((1 - lr decay) c p - lr u) with
c = (1 - m lr decay) / (1 - lr decay) / m, is a step with the learning rate m lr on the slice, decoupled decay
included.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from raysweep.contracts import HeadSlice
from raysweep.networks.plasticity.surgery import equally_spaced, joined

MOMENTS = ("exp_avg", "exp_avg_sq")


class SliceAdamW:
    """AdamW over named parameters; decay on matrices only.

    Args:
        parameters: by name, as in the head slices.
        weight_decay: decoupled decay, multiplied by the learning rate in each step.
        undecayed: names of matrices without decay.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], weight_decay: float, undecayed: Collection[str] = ()
    ) -> None:
        self.parameters = dict(parameters)
        # The usual rule: biases and norm gains do not decay.
        decayed = {name: p.dim() >= 2 and name not in undecayed for name, p in self.parameters.items()}
        self._decay_of = {p: weight_decay * decayed[name] for name, p in self.parameters.items()}
        matrices = [p for name, p in self.parameters.items() if decayed[name]]
        others = [p for name, p in self.parameters.items() if not decayed[name]]
        groups = [{"params": group, "weight_decay": self._decay_of[group[0]]} for group in (matrices, others) if group]
        # `lr` is set before every step; `fused` updates all parameters of a group at once.
        self.adamw = torch.optim.AdamW(groups, lr=0.0, fused=True)
        self._favoured: dict[tuple[int, float], list[torch.Tensor]] = {}
        """Views of the weights of favoured slices, by generation and by the decay of their parameters."""

    def clear(self, slices: Sequence[HeadSlice]) -> None:
        """Set weights and moments of absent heads to zero.

        Behind a closed gate their gradients are exactly zero too, so no later step and no decay moves them. The weights
        from before a prune are in the phase store.
        """
        # Moments, too: old momentum would move the weights for many steps without any gradient (heads.md 3.3).
        # Step counts stay, because they belong to the whole tensor.
        for part in joined(slices):
            parameter = self.parameters[part.parameter]
            for tensor in (parameter.data, *self._moments(parameter)):
                tensor.narrow(part.dim, part.start, part.length).zero_()

    def favour(self, generations: Mapping[HeadSlice, int]) -> None:
        """Choose the slices whose updates are scaled: `step` takes a multiplier for each generation."""
        self._favoured = {}
        for generation in set(generations.values()):
            of_it = [part for part, its_own in generations.items() if its_own == generation]
            # Touching slices are joined, and equally spaced ones become one strided view. In a fused
            # query-key-value weight that is one view for what would be three, and a step multiplies far fewer
            # tensors.
            for run in equally_spaced(joined(of_it)):
                parameter, first = self.parameters[run[0].parameter], run[0]
                # `unfold(dim, size, step)` views the windows [start + i * step, start + i * step + size). A
                # single slice is a window of its own, with any step.
                distance = run[1].start - first.start if len(run) > 1 else first.length
                reach = run[-1].start + first.length - first.start
                # A view of `.data`: multiplying it in place changes the weights, and autograd does not see it.
                view = parameter.data.narrow(first.dim, first.start, reach).unfold(first.dim, first.length, distance)
                self._favoured.setdefault((generation, self._decay_of[parameter]), []).append(view)

    def seed_second_moments(self, new: Sequence[HeadSlice], peers: Sequence[HeadSlice]) -> None:
        """Set the second moments of new slices to the mean of their peers in the same parameter and role.

        The step count is shared by the whole tensor, so zero moments would no longer be bias-corrected and the first
        updates of a new slice would be several times too large: a hidden learning-rate boost.
        """
        for part in new:
            # Peers of another role in a fused weight have gradients of another size.
            state = self.adamw.state.get(self.parameters[part.parameter])
            same = [peer for peer in peers if (peer.parameter, peer.role) == (part.parameter, part.role)]
            if state and same:
                second = state["exp_avg_sq"]
                mean = torch.stack([second.narrow(p.dim, p.start, p.length).mean() for p in same]).mean()
                second.narrow(part.dim, part.start, part.length).fill_(float(mean))

    @torch.no_grad()
    def step(self, lr: float, multipliers: Mapping[int, float] | None = None) -> None:
        """Take one AdamW step.

        Args:
            multipliers: by generation of favoured slices, 1 where left out; a multiplier of 1 changes no bit.
        """
        for group in self.adamw.param_groups:
            group["lr"] = lr
        # A multiplier of 1 is skipped: both factors would be exactly 1, so they would only cost time.
        favoured = [
            (multiplier, decay, views)
            for (generation, decay), views in self._favoured.items()
            if (multiplier := (multipliers or {}).get(generation, 1.0)) != 1.0
        ]
        # `_foreach` multiplies all views of a generation at once instead of one after the other.
        for multiplier, decay, views in favoured:
            torch._foreach_mul_(views, (1 - multiplier * lr * decay) / (1 - lr * decay) / multiplier)
        self.adamw.step()
        for multiplier, _, views in favoured:
            torch._foreach_mul_(views, multiplier)

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Return moments and step counts by `<parameter>/<moment>`; empty before the first step."""
        return {
            f"{name}/{moment}": value
            for name, parameter in self.parameters.items()
            for moment, value in self.adamw.state.get(parameter, {}).items()
        }

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore a copy of what `state_tensors` returned."""
        self.adamw.state.clear()
        for name, parameter in self.parameters.items():
            state = {m: tensors[f"{name}/{m}"] for m in (*MOMENTS, "step") if f"{name}/{m}" in tensors}
            if state:
                self.adamw.state[parameter] = {m: value.to(parameter.device, copy=True) for m, value in state.items()}

    def _moments(self, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
        state = self.adamw.state.get(parameter, {})
        return [state[moment] for moment in MOMENTS if moment in state]
