"""The tokens of a batch that have not left yet, and the keys and values of all tokens."""

from __future__ import annotations

import torch

from raysweep.networks.pnn.flops import Work
from raysweep.networks.pnn.parts import Attention


class Remaining:
    """The tokens of a batch that have not left, and the keys and values of all tokens.

    A place is a flat position in (batch, tokens); a row is an example.

    Args:
        real: (batch, tokens), False at padding, which never takes part.
        mask: as the attention interface takes it, the same for every query; None: nothing is padded.
        work: the counter to which the attention products are added.
    """

    def __init__(self, real: torch.Tensor, mask: torch.Tensor | None, work: Work) -> None:
        self.batch, self.tokens = real.shape
        # The mask hides padded keys only, so its rows are equal for all queries. One row broadcasts over however many
        # queries an example has left.
        self.mask = None if mask is None else mask[:, :, :1]
        self.work = work
        self._kept: dict[Attention, list[torch.Tensor]] = {}
        self._index(real.flatten().nonzero().flatten())

    def _index(self, at: torch.Tensor) -> None:
        """Index the remaining tokens: flat places `at`, the rows that have any, and each token's row and rank in it."""
        self.at = at
        self.rows, self.row, counts = torch.unique_consecutive(
            at // self.tokens, return_inverse=True, return_counts=True
        )
        # `row` counts only rows with remaining tokens, so it indexes the packed batch of `_in_rows`, not the original
        # one. A token's rank in its row is its index minus the tokens in all rows before it (exclusive sum of counts).
        self.rank = torch.arange(len(at), device=at.device) - (counts.cumsum(0) - counts)[self.row]
        self.widest = int(counts.max()) if len(at) else 0
        # Equally many in every row: packing is then a reshape, without gather and padding. This is the common case, for
        # example before anything has left.
        self._whole = len(at) == len(self.rows) * self.widest

    def leave(self, leaving: torch.Tensor) -> torch.Tensor:
        """Remove tokens; return the places they left in rows where other tokens remain.

        Args:
            leaving: (places,), True for each remaining token that leaves.
        """
        before = self.at
        self._index(before[~leaving])
        left = before[leaving]
        # A row that is empty now is never attended to again: its keys and values need no update.
        return left[torch.isin(left // self.tokens, self.rows)]

    def keep(self, attention: Attention, at: torch.Tensor, read: torch.Tensor) -> None:
        """Compute keys and values from what is read at some places, (places, width), and keep them."""
        found = [part[0].transpose(0, 1) for part in attention.keys_and_values(read[None])]
        # Places are sorted, so all of them at once are the whole store, in order: no copy into a buffer is needed.
        if len(at) == self.batch * self.tokens:
            self._kept[attention] = found
            return
        if attention not in self._kept:
            self._kept[attention] = [part.new_zeros(self.batch * self.tokens, *part.shape[1:]) for part in found]
        for kept, part in zip(self._kept[attention], found, strict=True):
            kept[at] = part

    def attended(self, attention: Attention, read: torch.Tensor, head_mask: torch.Tensor | None) -> torch.Tensor:
        """Attend from the remaining tokens to all tokens of their rows; (places, width)."""
        self.keep(attention, self.at, read)
        # A slice is a view where an index would copy all keys and values.
        rows = slice(None) if len(self.rows) == self.batch else self.rows
        keys, values = (
            kept.unflatten(0, (self.batch, self.tokens))[rows].transpose(1, 2) for kept in self._kept[attention]
        )
        own = attention.queries(read[None])[0].transpose(0, 1)
        mask = None if self.mask is None else self.mask[rows]
        mixed = attention.attend(self._in_rows(own).transpose(1, 2), keys, values, mask, head_mask)
        # Two products (scores, mixing) of 2 FLOPs a multiply-add, over the padded queries, as the kernel runs them.
        self.work.flops += 4 * len(self.rows) * self.widest * self.tokens * own[0].numel()
        return attention.o_proj(mixed.flatten(0, 1) if self._whole else mixed[self.row, self.rank])

    def _in_rows(self, own: torch.Tensor) -> torch.Tensor:
        """Pack values of the remaining tokens, (places, ...), into (rows, widest, ...), padded with zeros."""
        shape = (len(self.rows), self.widest)
        if self._whole:
            return own.unflatten(0, shape)
        filled = own.new_zeros(*shape, *own.shape[1:])
        filled[self.row, self.rank] = own
        return filled
