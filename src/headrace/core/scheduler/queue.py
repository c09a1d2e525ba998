"""WaitingQueue: who waits, and who is next in each class.

A class has a line for each tenant; the tenant that has received least is next, and in its line the
request that must start first (order.py, fairness.py). Every operation is O(log n). Requests whose
prefix somebody else is computing are **parked** under the digest they wait for, and looked at again
when it has come (or never will). Those that ended are forgotten when their turn comes.

It knows no blocks and no budget: whether the next one fits is the scheduler's.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from headrace.core.scheduler.order import NUM_RANKS
from headrace.core.scheduler.sequence import Status
from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as List

    from headrace.core.kvcache.eviction.evictor import Evictor
    from headrace.core.scheduler.fairness import Account
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Seconds, SequenceId, Tokens

_ID_BITS = 20  # of a place: ties are between sequences that are not a million apart
_START_BITS = 40  # of a place: milliseconds, 17 years either way; all of it fits 64 bits


class _Line:
    """Waiting requests of one tenant in one class, next first."""

    def __init__(self, account: Account, number: int) -> None:
        self.account = account
        self.number = number  # breaks ties between tenants: first come
        self.heap: list[tuple[Seconds, SequenceId, Sequence]] = []

    def first(self) -> Sequence | None:
        """Return the next one, None if there is none."""
        heap = self.heap
        while heap and not heap[0][2].is_queued:
            heappop(heap)
        return heap[0][2] if heap else None


class WaitingQueue:
    """Requests that hold no blocks. ``num_tokens`` counts what all of them have to compute.

    The ``evictor`` is told who waits: by class, and in a class by latest start and arrival.
    """

    def __init__(self, evictor: Evictor) -> None:
        self._evictor = evictor
        self.num_tokens: Tokens = 0
        self._waiting: dict[SequenceId, Sequence] = {}
        self._lines: list[dict[str, _Line]] = [{} for _ in range(NUM_RANKS)]
        self._next: list[list[tuple[Seconds, int, _Line]]] = [[] for _ in range(NUM_RANKS)]
        self._parked: dict[bytes, list[Sequence]] = {}
        self._num_in_rank = [0] * NUM_RANKS
        self._num_lines = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        """Go through all, in no useful order."""
        return iter(self._waiting.values())

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.id in self._waiting

    @property
    def by_rank(self) -> List[int]:
        """How many of each class wait, parked ones included."""
        return self._num_in_rank

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        self._waiting[sequence.id] = sequence
        self._num_in_rank[sequence.rank] += 1
        self.num_tokens += len(sequence.tokens)
        self._evictor.expect(sequence.table, _place(sequence))
        self._line_up(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence wait no longer."""
        del self._waiting[sequence.id]
        self._num_in_rank[sequence.rank] -= 1
        self.num_tokens -= len(sequence.tokens)
        self._evictor.forget(sequence.table)
        sequence.is_queued = False

    def first(self, rank: int) -> Sequence | None:
        """Return who is next in a class; None if nobody is (or all are parked or set aside)."""
        heap = self._next[rank]
        while heap:
            service, number, line = heap[0]
            sequence = line.first()
            if sequence is None:
                heappop(heap)
                if self._lines[rank].get(line.account.tenant) is line:
                    del self._lines[rank][line.account.tenant]
            elif service < line.account.service:  # served since it was put there
                heapreplace(heap, (line.account.service, number, line))
            else:
                return sequence
        return None

    def next_few(self, count: int) -> list[Sequence]:
        """Return who is next in each class and about who follows in its line, at most ``count``."""
        few: list[Sequence] = []
        for rank in range(NUM_RANKS):
            head = self.first(rank)
            if head is not None:
                line = self._lines[rank][head.account.tenant]
                few += [entry[2] for entry in line.heap[:count] if entry[2].is_queued]
        return few[:count]

    def set_aside(self, sequence: Sequence) -> None:
        """Leave out the first of its class, until it is put back."""
        line = self._lines[sequence.rank][sequence.account.tenant]
        if line.first() is not sequence:
            raise InvariantBroken(f"sequence {sequence.id} is not the first of its line")
        heappop(line.heap)
        sequence.is_queued = False

    def put_back(self, sequences: Iterable[Sequence]) -> None:
        """Let those that were set aside be next again, unless they have gone."""
        for sequence in sequences:
            if sequence.id in self._waiting and not sequence.is_queued:
                self._line_up(sequence)

    def park(self, sequence: Sequence, digest: bytes) -> None:
        """Set the first of its class aside until ``digest`` is settled."""
        self.set_aside(sequence)
        self._parked.setdefault(digest, []).append(sequence)

    def settle(self, digests: Iterable[bytes] | None) -> None:
        """Put back who was parked under ``digests``; None: everybody who is parked."""
        for digest in list(self._parked) if digests is None else digests:
            if sequences := self._parked.pop(digest, None):
                self.put_back(sequences)

    def ahead_of(self, newcomer: Sequence) -> tuple[int, Tokens]:
        """Guess how many go before a newcomer, and how many tokens they have.

        All of better classes; of its tenant those that must start first, and of each other tenant
        as many and one more, in turn. O(n): for those who ask for a first token in time.
        """
        rank, start, tenant = newcomer.rank, newcomer.latest_start, newcomer.account.tenant
        own = others = 0
        tokens: Tokens = 0
        rivals: dict[str, list[int]] = {}  # tenant -> requests, tokens
        for each in self._waiting.values():
            if each.rank < rank or (
                each.rank == rank and each.account.tenant == tenant and each.latest_start <= start
            ):
                own += each.rank == rank
                others += each.rank != rank
                tokens += len(each.tokens)
            elif each.rank == rank and each.account.tenant != tenant:
                rival = rivals.setdefault(each.account.tenant, [0, 0])
                rival[0] += 1
                rival[1] += len(each.tokens)
        for count, length in rivals.values():
            first = min(count, own + 1)
            others += first
            tokens += length * first // count
        return own + others, tokens

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless everybody who waits will be looked at."""
        parked = [s.id for group in self._parked.values() for s in group if s.id in self._waiting]
        queued = [
            entry[2].id
            for lines in self._lines
            for line in lines.values()
            for entry in line.heap
            if entry[2].is_queued
        ]
        if sorted(parked + queued) != sorted(self._waiting):
            raise InvariantBroken(
                f"waiting are {sorted(self._waiting)}, in lines {sorted(queued)}, "
                f"parked {sorted(parked)}"
            )
        tokens = sum(len(sequence.tokens) for sequence in self._waiting.values())
        ranks = [0] * NUM_RANKS
        for sequence in self._waiting.values():
            ranks[sequence.rank] += 1
            if sequence.status is not Status.WAITING:
                raise InvariantBroken(f"{sequence} is in the queue of those that wait")
        if tokens != self.num_tokens or ranks != self._num_in_rank:
            raise InvariantBroken(
                f"{self.num_tokens} tokens counted, {tokens} wait; {self._num_in_rank} requests "
                f"by class counted, {ranks} wait"
            )

    def _line_up(self, sequence: Sequence) -> None:
        lines, account = self._lines[sequence.rank], sequence.account
        line = lines.get(account.tenant)
        if line is None or line.account is not account:  # the old account was forgotten
            line = lines[account.tenant] = _Line(account, self._num_lines)
            self._num_lines += 1
            heappush(self._next[sequence.rank], (account.service, line.number, line))
        if len(line.heap) > 2 * self._num_in_rank[sequence.rank] + 64:
            line.heap = [entry for entry in line.heap if entry[2].is_queued]
            heapify(line.heap)
        sequence.is_queued = True
        heappush(line.heap, (sequence.latest_start, sequence.id, sequence))


def _place(sequence: Sequence) -> int:
    """Return a number that orders by class, latest start and arrival; tenants not told apart."""
    start = int(1000 * sequence.latest_start) + (1 << _START_BITS - 1)
    start = min(max(start, 0), (1 << _START_BITS) - 1)
    number = sequence.id & (1 << _ID_BITS) - 1
    return (sequence.rank << _START_BITS | start) << _ID_BITS | number
