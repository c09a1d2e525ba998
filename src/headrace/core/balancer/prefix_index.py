"""Which replica holds which KV blocks: block key -> a bit for each replica.

A prompt's depth at every replica comes out of a search by halves over its keys that ANDs the
bits, deepest first: O(log depth) look-ups for each different depth, however many replicas there
are. Keys are 64 bits of the chained digests, so a key stands for the whole prefix before it.
Entries are *held* (said by the replica, or assumed of one that says nothing) or *expected* (a
prompt under way there will leave them). It decides nothing, and a wrong entry costs time, never a
wrong token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.types import BlockKey, ReplicaId

NO_LIMIT = 1 << 30
"""Looks into the index for one prompt: as many as it takes."""

MAX_KEYS = 1 << 20
"""Held for one replica: 16 million tokens at 16 a block. What comes above is not kept."""


@dataclass(slots=True)
class _Shelf:
    """What one replica holds, oldest first, and how many prompts under way expect each key."""

    replica: ReplicaId
    bit: int
    held: dict[BlockKey, None] = field(default_factory=dict)
    expected: dict[BlockKey, int] = field(default_factory=dict)


class PrefixIndex:
    """Of all replicas. Memory is bounded by ``max_keys`` for each, and by prompts under way."""

    def __init__(self, *, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._where: dict[BlockKey, int] = {}
        self._shelves: dict[ReplicaId, _Shelf] = {}
        self._slots: list[_Shelf | None] = []
        self._everyone = 0  # all bits in use

    def __len__(self) -> int:
        """Distinct keys."""
        return len(self._where)

    def add(self, replica: ReplicaId) -> None:
        """Take a replica in, with nothing on it."""
        self.drop(replica)
        slot = self._slots.index(None) if None in self._slots else len(self._slots)
        shelf = _Shelf(replica, 1 << slot)
        self._slots[slot : slot + 1] = [shelf]
        self._shelves[replica] = shelf
        self._everyone |= shelf.bit

    def drop(self, replica: ReplicaId) -> None:
        """Forget a replica, in O(its keys). Unknown ones are ignored."""
        shelf = self._shelves.pop(replica, None)
        if shelf is None:
            return
        self._clear(shelf, [*shelf.held, *shelf.expected])
        self._everyone ^= shelf.bit
        self._slots[shelf.bit.bit_length() - 1] = None

    def store(self, replica: ReplicaId, keys: Iterable[BlockKey]) -> None:
        """Note that a replica holds these, as far as there is room."""
        shelf = self._shelves[replica]
        held = shelf.held
        new = [key for key in dict.fromkeys(keys) if key not in held][: self._max_keys - len(held)]
        held.update(dict.fromkeys(new))
        self._mark(shelf, new)

    def remove(self, replica: ReplicaId, keys: Iterable[BlockKey]) -> None:
        """Note that a replica holds these no more."""
        shelf = self._shelves[replica]
        gone = []
        for key in keys:
            if key in shelf.held:
                del shelf.held[key]
                gone.append(key)
        self._clear(shelf, [key for key in gone if key not in shelf.expected])

    def replace(self, replica: ReplicaId, keys: Iterable[BlockKey]) -> None:
        """Note that a replica holds these and nothing else."""
        self.remove(replica, list(self._shelves[replica].held))
        self.store(replica, keys)

    def assume(self, replica: ReplicaId, keys: Sequence[BlockKey], *, limit: int) -> None:
        """Take it that these were used there just now, and that it holds the ``limit`` latest.

        Of one prompt the last block goes first: a prefix without its beginning is worth nothing.
        """
        shelf = self._shelves[replica]
        held = shelf.held
        limit = min(limit, self._max_keys)
        keys = keys[:limit]
        new = []
        for key in keys:
            if key in held:
                del held[key]
            else:
                new.append(key)
        surplus = len(held) + len(keys) - limit
        if surplus > 0:
            self.remove(replica, list(islice(held, surplus)))
        for key in reversed(keys):
            held[key] = None
        self._mark(shelf, new)

    def expect(self, replica: ReplicaId, keys: Sequence[BlockKey]) -> None:
        """Count on these being there soon; ends with ``unexpect`` of the same keys."""
        shelf = self._shelves[replica]
        expected = shelf.expected
        for key in keys:
            expected[key] = expected.get(key, 0) + 1
        self._mark(shelf, keys)

    def unexpect(self, replica: ReplicaId, keys: Iterable[BlockKey]) -> None:
        """Take back one ``expect``. A replica that is gone is ignored."""
        shelf = self._shelves.get(replica)
        if shelf is None:
            return
        expected, gone = shelf.expected, []
        for key in keys:
            if expected[key] > 1:
                expected[key] -= 1
                continue
            del expected[key]
            if key not in shelf.held:
                gone.append(key)
        self._clear(shelf, gone)

    def match(self, keys: Sequence[BlockKey], looks: int = NO_LIMIT) -> dict[ReplicaId, int]:
        """Return how many of the first keys each replica has, where it is any.

        Takes it that who has a block has those before it, as caches that free tails first do: of a
        replica with gaps it may return a block that is not the end of its first run, from which
        time is lost, and nothing else. After ``looks`` look-ups it is content with what it has
        seen: the largest depths are found first, of those left it returns no more than they have.
        """
        depths: dict[ReplicaId, int] = {}
        get = self._where.get
        at_low = get(keys[0], 0) if keys else 0
        if not at_low:
            return depths
        low, high = 1, len(keys)
        at_high = at_low & get(keys[-1], 0)
        looks -= 2
        if at_high:
            self._note(at_high, high, depths)
        left: list[tuple[int, int, int, int]] = []  # (low, high, who has low, who of them has high)
        while True:
            if at_low != at_high and high - low > 1 and looks > 0:
                looks -= 1
                middle = (low + high) // 2
                at_middle = at_low & get(keys[middle - 1], 0) | at_high
                if at_middle != at_low:
                    left.append((low, middle, at_low, at_middle))
                low, at_low = middle, at_middle
                continue
            if at_low != at_high:
                self._note(at_low & ~at_high, low, depths)
            if not left:
                return depths
            low, high, at_low, at_high = left.pop()

    def num_held(self, replica: ReplicaId, keys: Sequence[BlockKey]) -> int:
        """Return how many of the first keys a known replica holds now, not only expects."""
        held, low, high = self._shelves[replica].held, 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in held:
                low = middle + 1
            else:
                high = middle
        return low

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless bits and shelves say the same."""
        found: dict[BlockKey, int] = {}
        for shelf in self._shelves.values():
            if len(shelf.held) > self._max_keys:
                raise InvariantBroken(f"{shelf.replica}: {len(shelf.held)} > {self._max_keys}")
            if any(count < 1 for count in shelf.expected.values()):
                raise InvariantBroken(f"{shelf.replica}: expects a key less than once")
            for key in shelf.held.keys() | shelf.expected.keys():
                found[key] = found.get(key, 0) | shelf.bit
        if found != self._where:
            raise InvariantBroken(f"{len(found)} keys on shelves, {len(self._where)} in the index")
        bits = sum(shelf.bit for shelf in self._shelves.values())
        if bits != self._everyone:
            raise InvariantBroken(f"bits in use {bits:b}, noted {self._everyone:b}")

    def _mark(self, shelf: _Shelf, keys: Iterable[BlockKey]) -> None:
        """Set a replica's bit. Neighbours that have the same bits share one object: of a prompt's
        blocks most do, which saves memory, and time when it is not in the processor's caches."""
        where, get, bit = self._where, self._where.get, shelf.bit
        before, after = 0, bit
        for key in keys:
            mask = get(key, 0)
            if mask is not before:
                before, after = mask, mask | bit
            where[key] = after

    def _clear(self, shelf: _Shelf, keys: Iterable[BlockKey]) -> None:
        where, bit = self._where, shelf.bit
        before, after = 0, 0
        for key in keys:
            mask = where.get(key, 0)
            if mask is not before:
                before, after = mask, mask & ~bit
            if after:
                where[key] = after
            else:
                where.pop(key, None)

    def _note(self, mask: int, depth: int, depths: dict[ReplicaId, int]) -> None:
        while mask:
            lowest = mask & -mask
            mask ^= lowest
            shelf = self._slots[lowest.bit_length() - 1]
            if shelf is not None:
                depths[shelf.replica] = depth
