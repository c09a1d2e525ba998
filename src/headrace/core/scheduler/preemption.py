"""Preemption: who gives back memory when decodes run short of it, and how to need it seldom.

A preempted sequence's blocks go back to the prefix cache, tail first. So what is lost is decided by
what others take before it comes back: nothing, the tail, or all of it; lower tiers, where there
are any, save what would be lost. **Regret** is what must be computed again of what nobody else
holds. (Divided by the memory gained, or by what a sequence may still ask for, it costs more: long
ones go that had nearly everything.)

``Headroom`` is what newcomers must leave free for those who run to grow into. It doubles with each
preemption and shrinks slowly while there are none (additive and multiplicative as in Chiu and Jain,
1989, the other way round), so the number of sequences that run follows what they turn out to need.
Against the newest with all of it computed again, in benchmarks/twin/preemption.py, sequences that
come to 1.5, 1.75 and 2 times the cache: 0.2, 0.7 and 1.1 % of all computed tokens are computed
again instead of 1.0, 2.1 and 4.5 %, nobody stalls (95th percentile of the worst gap 0.1 s instead
of 0.1, 1.5 and 3.3 s), and the whole takes 1 to 3 % longer, because some memory is left free.
Where outputs end long before max_tokens (tests), it takes less.
"""

from __future__ import annotations

from enum import StrEnum
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as List

    from headrace.core.costs.step_model import StepModel
    from headrace.core.kvcache.cache import KVCache
    from headrace.core.scheduler.order import Patience
    from headrace.core.scheduler.sequence import Sequence
    from headrace.core.scheduler.step import Step
    from headrace.types import Seconds, Tokens


class Preemption(StrEnum):
    """Who is preempted."""

    LEAST_REGRET = "least_regret"
    LAST_IN = "last_in"  # the newest, whatever it costs, and no headroom


class Victims:
    """Chooses by ``policy``; ``kv`` tells what is shared, ``model`` what recomputation costs,
    ``patience`` whose turn it is to run whatever better classes want.

    Whoever was sent back ``max_setbacks`` times without getting further is spared (0: nobody is).
    """

    def __init__(
        self,
        kv: KVCache,
        model: StepModel,
        policy: Preemption,
        patience: Patience,
        max_setbacks: int = 0,
    ) -> None:
        self._max_setbacks = max_setbacks
        self._kv = kv
        self._model = model
        self._policy = policy
        self._patience = patience
        self.are_awaited = False  # by somebody better, until no step is in flight
        self.headroom = Headroom(kv.block_size, adapts=policy is Preemption.LEAST_REGRET)

    def in_turn(self, running: Iterable[Sequence]) -> Iterator[Sequence]:
        """Yield whom to preempt, one after the other, as things are then.

        ``running`` is in order of arrival; those that are spared come last. Nobody's regret gets
        less as others go (what it shared with them it then holds alone), so one that is still the
        least when looked at again is the least of all: O(log n) each, but for the first.
        """
        sequences = list(running)
        unspared = self.unspared(sequences)
        chosen = {sequence.id for sequence in unspared}
        for group in (unspared, [each for each in sequences if each.id not in chosen]):
            if self._policy is Preemption.LAST_IN:
                yield from reversed(group)
            else:
                yield from self._by_regret(group)

    def unspared(self, running: Iterable[Sequence]) -> list[Sequence]:
        """Return those who may be preempted."""
        limit = self._max_setbacks
        return [s for s in running if not limit or s.num_setbacks < limit]

    def yielding(self, running: Iterable[Sequence], step: Step) -> list[Sequence]:
        """Return those who may be preempted for better newcomers, and are not in ``step``."""
        return [s for s in self.unspared(running) if s.yields and s.last_step != step.id]

    def suffice(self, sequences: List[Sequence], newcomer: Sequence, spare: int) -> bool:
        """Whether ``spare`` blocks and those of ``sequences`` are enough for a newcomer."""
        kv, table = self._kv, newcomer.table
        shared = any(table.begins_like(each.table) for each in sequences)  # and lost with them
        demand = kv.blocks_for(len(table.tokens)) if shared else kv.survey.demand(table)
        return demand <= spare + sum(self._num_freed(each) for each in sequences)

    def _by_regret(self, sequences: List[Sequence]) -> Iterator[Sequence]:
        heap = [(self._regret(sequence), sequence) for sequence in sequences]
        heapify(heap)
        while heap:
            regret, sequence = heap[0]
            now = self._regret(sequence)
            if now > regret:
                heapreplace(heap, (now, sequence))
            else:
                heappop(heap)
                yield sequence

    def _num_freed(self, sequence: Sequence) -> int:
        """Count the blocks that a sequence holds alone, or that are promised to it."""
        kept = self._kv.survey.num_shared(sequence.table)
        return self._kv.blocks_for(max(sequence.num_computed, len(sequence.tokens))) + 1 - kept

    def _regret(self, sequence: Sequence) -> tuple[int, Seconds, Tokens, int]:
        """Return better classes last, then seconds lost, then what it would ask for."""
        kept = self._kv.survey.num_shared(sequence.table) * self._kv.block_size
        held = max(sequence.num_computed - kept, 1)
        lost = self._model.recompute_seconds(held, kept)
        remaining = sequence.max_tokens - len(sequence.tokens)
        rank = 0 if self._patience.has_turn(sequence.rank) else sequence.rank
        return -rank, lost, -remaining, -sequence.id


class Headroom:
    """Tokens that each running sequence may grow by before newcomers get any memory."""

    _SHRINK: Final = 0.999  # each step: to a half in some 700
    _MOST: Final = 4096

    def __init__(self, block_size: Tokens, *, adapts: bool) -> None:
        self._least = block_size
        self._adapts = adapts
        self._tokens = float(block_size)

    @property
    def tokens(self) -> Tokens:
        """What to leave for each."""
        return int(self._tokens)

    @property
    def is_least(self) -> bool:
        """Whether one block for each is enough."""
        return self._tokens < 2 * self._least

    def preempted(self) -> None:
        """It was too little."""
        if self._adapts:
            self._tokens = min(2 * self._tokens, self._MOST)

    def stepped(self) -> None:
        """A step was planned without preempting anybody."""
        self._tokens = max(self._SHRINK * self._tokens, self._least)
