"""Running: the sequences that hold blocks, in order of arrival."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING

from headrace.core.scheduler.sequence import Status
from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.core.kvcache.cache import KVCache
    from headrace.core.kvcache.table import BlockTable
    from headrace.core.scheduler.preemption import Headroom
    from headrace.core.scheduler.sequence import Sequence
    from headrace.core.scheduler.step import Step
    from headrace.types import SequenceId, StepId, Tokens

_by_arrival = attrgetter("id")


class Running:
    """``ends`` are sequences that left and whose end the executor must be told, ``preempted`` those
    of them that come back."""

    def __init__(self, kv: KVCache) -> None:
        self.sequences: list[Sequence] = []
        self.ends: list[SequenceId] = []
        self.preempted: list[SequenceId] = []
        self._kv = kv

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence run."""
        sequence.status = Status.RUNNING
        insort(self.sequences, sequence, key=_by_arrival)

    def remove(self, sequence: Sequence, *, after: StepId | None) -> None:
        """Take a sequence out; its blocks are free at once, or when step ``after`` is done."""
        self.sequences.remove(sequence)
        if sequence.is_begun:
            self.ends.append(sequence.id)
        self._kv.release(sequence.table, after=after)

    def take_back(self, sequence: Sequence) -> None:
        """Let a sequence wait that was added and is in no step yet."""
        self.sequences.remove(sequence)
        self._kv.release(sequence.table, after=None)
        sequence.status = Status.WAITING
        sequence.num_computed = 0

    def take_left(self) -> tuple[tuple[SequenceId, ...], tuple[SequenceId, ...]]:
        """Return ``ends`` and ``preempted``, and begin both anew."""
        left = tuple(self.ends), tuple(self.preempted)
        self.ends.clear()
        self.preempted.clear()
        return left

    def tables(self) -> list[BlockTable]:
        """Return the tables of all."""
        return [sequence.table for sequence in self.sequences]

    def growing(self) -> set[SequenceId]:
        """Return the decodes whose next token begins a new block."""
        block_size = self._kv.block_size
        return {
            s.id
            for s in self.sequences
            if s.num_missing <= 1
            and s.num_computed == len(s.table.blocks) * block_size
            and len(s.tokens) + s.num_unseen < s.max_tokens
        }

    def behind(self) -> list[Sequence]:
        """Return those that lack more than their next token."""
        return [s for s in self.sequences if s.num_missing > 1]

    def num_spare(self, behind: Iterable[Sequence], headroom: Headroom) -> int:
        """Count the free blocks that are promised to nobody: neither to those ``behind``, which
        lack them, nor to all who run, to grow into."""
        kv = self._kv
        lacking = sum(kv.num_lacking(s.table) for s in behind)
        return kv.num_free - lacking - self._growth(headroom)

    def _growth(self, headroom: Headroom) -> int:
        if headroom.is_least:
            return len(self.sequences)
        kv, most = self._kv, headroom.tokens
        return sum(
            kv.blocks_for(min(most, s.max_tokens - len(s.tokens))) or 1 for s in self.sequences
        )

    def num_missing(self) -> Tokens:
        """Count the tokens of prompts that are not computed yet."""
        return sum(s.num_missing for s in self.sequences if s.num_missing > 1)

    def check_integrity(self, in_flight: Iterable[Step]) -> None:
        """Raise InvariantBroken unless every sequence has its blocks and its samples in flight."""
        unseen = Counter(
            sequence.id
            for step in in_flight
            for sequence, row in zip(step.sequences, step.rows, strict=True)
            if row.samples
        )
        for sequence in self.sequences:
            capacity = len(sequence.table.blocks) * self._kv.block_size
            if sequence.status is not Status.RUNNING or sequence.num_computed > capacity:
                raise InvariantBroken(f"{sequence} runs with blocks for {capacity} tokens")
            if sequence.num_unseen != unseen[sequence.id]:
                raise InvariantBroken(f"{sequence}: {unseen[sequence.id]} samples in flight")
        if self.sequences != sorted(self.sequences, key=_by_arrival):
            raise InvariantBroken(f"not in order of arrival: {[s.id for s in self.sequences]}")
