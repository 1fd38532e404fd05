"""Speculative decoding: tokens that something cheap proposes, and the model checks in one pass (arXiv 2211.17192).

What comes out is distributed as without; which proposals are made only changes how fast it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference.choosing import BatchOptions, RowState, kept, next_ids, penalized
from inference.row import Row
from inference.sampling import draw
from inference.slots import SlotTable


@dataclass(frozen=True)
class Proposal:
    """How a text may go on."""

    tokens: list[int]
    probabilities: Tensor | None = None
    """(tokens, vocab) float64, what each was drawn from; None where no chance was in it."""


NOTHING = Proposal([])


class Proposer(Protocol):
    """Where proposals come from."""

    def begin(self, table: SlotTable) -> None:
        """An engine will ask about the rows of `table`."""

    def propose(self, rows: Sequence[Row]) -> list[Proposal]:
        """One proposal a row of the table, `NOTHING` where there is none."""

    def learn(self, row: Row, proposed: int, accepted: int) -> None:
        """So many tokens of a row's proposal were accepted."""


class Pace:
    """Whether proposing pays for one row: a check costs time, so what is mostly refused is not proposed for a while."""

    PAUSE = 32  # tokens
    ENOUGH = 0.25  # share of the proposed tokens that is to be accepted

    def __init__(self) -> None:
        self.share = 2 * self.ENOUGH  # lately accepted of those proposed
        self._from = 0

    def room(self, row: Row, most: int) -> int:
        """How many tokens to propose: none that could not be written, because the context or the request ends."""
        if row.written < self._from:
            return 0
        left = row.request.sampling.max_new_tokens - row.written - 1
        return max(0, min(most, left, row.room - len(row.ids)))

    def learn(self, row: Row, proposed: int, accepted: int) -> None:
        self.share += 0.2 * (accepted / proposed - self.share)
        if self.share < self.ENOUGH:
            self.share, self._from = 2 * self.ENOUGH, row.written + self.PAUSE


def decide(states: Sequence[RowState], proposals: Sequence[Proposal], logits: Tensor) -> list[list[int]]:
    """The next tokens of every row, one more than it accepts of its proposal.

    logits: (positions, vocab), of each row those after its last token and after every proposed one.
    """
    after = [
        state.after(proposal.tokens[:count])
        for state, proposal in zip(states, proposals, strict=True)
        for count in range(len(proposal.tokens) + 1)
    ]
    logits = penalized(logits, after)
    uniforms = [
        number
        for state, proposal in zip(states, proposals, strict=True)
        for number in state.coming(len(proposal.tokens) + 1)
    ]
    options = BatchOptions([state.options for state in after])
    chosen = next_ids(logits, options, torch.tensor(uniforms, dtype=torch.float64)).tolist()
    taken, first = [], 0
    for state, proposal in zip(states, proposals, strict=True):
        stop = first + len(proposal.tokens) + 1
        if proposal.probabilities is None:
            tokens = agreeing(chosen[first:stop], proposal.tokens)
            state.use(len(tokens))
        else:
            own = BatchOptions([state.options] * (stop - first))
            target = kept(logits[first:stop], own).softmax(-1)
            tokens = accept(target, proposal.probabilities, proposal.tokens, state.uniform)
        taken.append(tokens)
        first = stop
    return taken


def agreeing(drawn: Sequence[int], proposed: Sequence[int]) -> list[int]:
    """Of `drawn`, the tokens drawn as without proposals, those whose place the proposal let see rightly.

    This is the rule of `accept` for a certain proposal: it is drawn with just the probability with which it may be
    accepted, and what is drawn otherwise is distributed as the rest. So a seed gives the text that it gives without.
    """
    count = 0
    while count < len(proposed) and drawn[count] == proposed[count]:
        count += 1
    return list(drawn[: count + 1])


def accept(
    target: Tensor,  # (tokens + 1, vocab) float64, probabilities of the model
    draft: Tensor,  # (tokens, vocab) float64, probabilities that the proposed tokens were drawn from
    proposed: Sequence[int],
    uniform: Callable[[], float],
) -> list[int]:
    """The tokens that stay, and the one after them (Leviathan et al., arXiv 2211.17192, algorithm 1).

    A proposed token stays with the probability min(1, target / draft). In the place of the first that does not stands
    one drawn from what the target has more than the draft; after the last of all, one from the target.
    """
    for place, token in enumerate(proposed):
        if uniform() * draft[place, token] >= target[place, token]:
            rest = (target[place] - draft[place]).clamp(min=0)
            return [*proposed[:place], _drawn(rest, uniform)]
    return [*proposed, _drawn(target[len(proposed)], uniform)]


def _drawn(weights: Tensor, uniform: Callable[[], float]) -> int:
    return int(draw(weights.log()[None], torch.tensor([uniform()], dtype=torch.float64)))
