"""WaitingQueue against a list that is searched from end to end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.table import BlockTable
from headrace.core.scheduler.fairness import Account
from headrace.core.scheduler.order import NUM_RANKS
from headrace.core.scheduler.queue import WaitingQueue
from headrace.core.scheduler.sequence import Sequence
from headrace.types import Request, RequestId, SequenceId

TENANTS = "abc"
ranks = st.integers(0, NUM_RANKS - 1)


class WaitingQueueStates(RuleBasedStateMachine):
    """``visible`` are those that may be first; ``parked`` and ``aside`` wait too."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue(KVCache(num_blocks=8, block_size=4).evictor)
        self.accounts = {(t, r): Account(t, r) for t in TENANTS for r in range(NUM_RANKS)}
        self.visible: list[Sequence] = []
        self.aside: list[Sequence] = []
        self.parked: list[tuple[bytes, Sequence]] = []
        self.running: list[Sequence] = []
        self.count = 0

    def waiting(self) -> list[Sequence]:
        return [*self.visible, *self.aside, *(s for _, s in self.parked)]

    def candidates(self, rank: int) -> list[Sequence]:
        """Those of the least served tenants that may be first."""
        mine = [s for s in self.visible if s.rank == rank]
        least = min((s.account.service for s in mine), default=0.0)
        tenants = {s.account.tenant for s in mine if s.account.service == least}
        heads = []
        for tenant in tenants:
            line = [s for s in mine if s.account.tenant == tenant]
            heads.append(min(line, key=lambda s: (s.latest_start, s.id)))
        return heads

    @rule(
        tenant=st.sampled_from(TENANTS),
        rank=ranks,
        start=st.floats(0, 5),
        length=st.integers(1, 9),
    )
    def add(self, tenant: str, rank: int, start: float, length: int):
        tokens = [1] * length
        sequence = Sequence(
            id=SequenceId(self.count),
            request=Request(id=RequestId(str(self.count)), prompt=tuple(tokens), max_tokens=1),
            tokens=tokens,
            table=BlockTable(tokens, 4, b""),
            max_tokens=20,
            beginning=None,
            account=self.accounts[tenant, rank],
            rank=rank,
            latest_start=start,
        )
        self.count += 1
        self.queue.add(sequence)
        self.visible.append(sequence)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def somebody_leaves(self, data: st.DataObject):
        sequence = data.draw(st.sampled_from(self.waiting()))
        self.queue.remove(sequence)
        self.visible = [s for s in self.visible if s is not sequence]
        self.aside = [s for s in self.aside if s is not sequence]
        self.parked = [(d, s) for d, s in self.parked if s is not sequence]

    @rule(rank=ranks, then=st.sampled_from(["start", "aside", "park"]), key=st.sampled_from([1, 2]))
    def take_first(self, rank: int, then: str, key: int):
        first = self.queue.first(rank)
        if first is None:
            assert not self.candidates(rank)
            return
        self.visible.remove(first)
        if then == "park":
            self.queue.park(first, bytes([key]))
            self.parked.append((bytes([key]), first))
            return
        self.queue.set_aside(first)
        if then == "aside":
            self.aside.append(first)
        else:
            self.queue.remove(first)
            self.running.append(first)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_preempted_one_comes_back(self, data: st.DataObject):
        sequence = data.draw(st.sampled_from(self.running))
        self.running.remove(sequence)
        sequence.tokens.append(1)
        self.queue.add(sequence)
        self.visible.append(sequence)

    @rule()
    def put_back(self):
        self.queue.put_back(self.aside)
        self.visible += self.aside
        self.aside = []

    @rule(key=st.sampled_from([1, 2]))
    def settle(self, key: int):
        self.queue.settle([bytes([key])])
        self.visible += [s for d, s in self.parked if d == bytes([key])]
        self.parked = [(d, s) for d, s in self.parked if d != bytes([key])]

    @rule(tenant=st.sampled_from(TENANTS), rank=ranks, seconds=st.floats(0.01, 3))
    def charge(self, tenant: str, rank: int, seconds: float):
        self.accounts[tenant, rank].charge(seconds)

    @rule(tenant=st.sampled_from(TENANTS), rank=ranks, service=st.floats(0, 3))
    def an_idle_account_is_forgotten(self, tenant: str, rank: int, service: float):
        account = self.accounts[tenant, rank]
        if any(s.account is account for s in (*self.waiting(), *self.running)):
            return
        self.accounts[tenant, rank] = Account(tenant, rank, service=service)

    @invariant()
    def the_first_is_the_one_that_a_search_finds(self):
        for rank in range(NUM_RANKS):
            first, candidates = self.queue.first(rank), self.candidates(rank)
            assert first in candidates if candidates else first is None

    @invariant()
    def everything_is_counted(self):
        waiting = self.waiting()
        if not self.aside:  # between steps nobody is
            self.queue.check_integrity()
        assert len(self.queue) == len(waiting)
        assert {s.id for s in self.queue} == {s.id for s in waiting}
        assert all(s in self.queue for s in waiting)
        assert self.queue.num_tokens == sum(len(s.tokens) for s in waiting)
        for rank in range(NUM_RANKS):
            assert self.queue.by_rank[rank] == sum(s.rank == rank for s in waiting)


WaitingQueueStates.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None
)
TestWaitingQueueStates = WaitingQueueStates.TestCase
