"""Which examples come when, and which share a row: pure functions of lengths, seed and epoch."""

from __future__ import annotations

import numpy as np

from common.errors import UserError


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `count` in the order of one epoch, (count,) int64."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def length_grouped(lengths: np.ndarray, batch: int, seed: int, epoch: int) -> np.ndarray:
    """An order in which neighbours are about equally long, so that little of a batch is padding, (examples,) int64.

    Shuffled examples are sorted by descending length within chunks of up to fifty batches, as transformers has it. The
    longest of all comes first, so a batch that does not fit in memory fails at once. Lengths fall within each chunk,
    and so does the loss: its curve is jagged.

    Args:
        lengths: (examples,), in tokens.
        batch: examples in a batch.
    """
    order = shuffled(len(lengths), seed, epoch)
    if not len(order):
        return order
    longest = int(np.argmax(lengths[order]))
    order[[0, longest]] = order[[longest, 0]]
    chunk = max(1, min(len(order) // (4 * batch), 50)) * batch
    chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    return np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in chunks])


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Examples that share a row of `capacity` tokens: best-fit decreasing bin packing, which splits none.

    From the longest to the shortest, every example goes to the row where it leaves least room. That takes at most 11/9
    of the fewest rows possible, and a few (Johnson et al. 1974). O(n log capacity).

    Args:
        lengths: (examples,), in tokens.
        capacity: of a row, in tokens.

    Returns:
        The numbers of the examples in each row.

    Raises:
        UserError: an example is longer than a row.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise UserError(
            f"an example of {int(lengths.max()):,} tokens does not fit in a packed row of {capacity:,}; "
            "cut examples to at most that, or make rows longer"
        )
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # the rows that have exactly so much room left
    rooms = _Rooms(capacity)
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[example])
        room = rooms.smallest(length)
        if room is None:
            row, room = len(rows), capacity
            rows.append([])
        else:
            row = with_room[room].pop()
            rooms.set(room, bool(with_room[room]))
        rows[row].append(example)
        with_room[room - length].append(row)
        rooms.set(room - length, True)
    return rows


class _Rooms:
    """The set of the numbers from 0 to `largest`, searched by a tree in which each node knows its largest member."""

    def __init__(self, largest: int) -> None:
        self._leaves = 1 << largest.bit_length()
        self._tree = [-1] * (2 * self._leaves)

    def set(self, number: int, present: bool) -> None:
        node = self._leaves + number
        self._tree[node] = number if present else -1
        while node > 1:
            node //= 2
            self._tree[node] = max(self._tree[2 * node], self._tree[2 * node + 1])

    def smallest(self, least: int) -> int | None:
        """The smallest member that is not below `least`."""
        if self._tree[1] < least:
            return None
        node = 1
        while node < self._leaves:
            node *= 2
            if self._tree[node] < least:
                node += 1
        return self._tree[node]
