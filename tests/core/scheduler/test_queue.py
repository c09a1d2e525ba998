"""WaitingQueue: whose turn it is. Against a naive oracle: tests/property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.table import BlockTable
from headrace.core.scheduler.fairness import Account
from headrace.core.scheduler.queue import WaitingQueue
from headrace.core.scheduler.sequence import Sequence
from headrace.errors import InvariantBroken
from headrace.types import Request, RequestId, SequenceId

RANK = 1


def sequence_of(number: int, account: Account, start: float, rank: int = RANK) -> Sequence:
    tokens = [1] * (number + 1)
    request = Request(id=RequestId(f"r{number}"), prompt=tuple(tokens), max_tokens=1)
    return Sequence(
        id=SequenceId(number),
        request=request,
        tokens=tokens,
        table=BlockTable(tokens, 4, b""),
        max_tokens=9,
        beginning=None,
        account=account,
        rank=rank,
        latest_start=start,
    )


def queue_of(*sequences: Sequence) -> WaitingQueue:
    queue = WaitingQueue(KVCache(num_blocks=8, block_size=4).evictor)
    for sequence in sequences:
        queue.add(sequence)
    return queue


def drained(queue: WaitingQueue, rank: int = RANK) -> list[int]:
    numbers = []
    while (sequence := queue.first(rank)) is not None:
        numbers.append(int(sequence.id))
        queue.set_aside(sequence)
        queue.remove(sequence)
    return numbers


def test_within_a_tenant_the_latest_start_decides_and_then_arrival():
    account = Account("a", RANK)
    starts = [3.0, 1.0, 1.0, 2.0]
    queue = queue_of(*(sequence_of(i, account, start) for i, start in enumerate(starts)))
    assert drained(queue) == [1, 2, 3, 0]


def test_the_tenant_that_was_served_least_goes_first_whatever_must_start_sooner():
    a, b = Account("a", RANK, service=1.0), Account("b", RANK)
    queue = queue_of(sequence_of(0, a, 1.0), sequence_of(1, b, 9.0))
    assert queue.first(RANK) is not None
    assert drained(queue) == [1, 0]


def test_service_that_was_charged_since_is_seen():
    a, b = Account("a", RANK), Account("b", RANK)
    queue = queue_of(sequence_of(0, a, 1.0), sequence_of(1, b, 1.0))
    first = queue.first(RANK)
    assert first is not None
    assert first.account is a
    a.charge(1.0)
    first = queue.first(RANK)
    assert first is not None
    assert first.account is b


def test_an_account_that_was_forgotten_and_opened_again_counts_as_the_new_one():
    old, other = Account("a", RANK, service=5.0), Account("b", RANK, service=2.0)
    gone, waits = sequence_of(0, old, 1.0), sequence_of(1, other, 1.0)
    queue = queue_of(gone, waits)
    queue.remove(gone)
    queue.add(sequence_of(2, Account("a", RANK, service=1.0), 1.0))
    assert drained(queue) == [2, 1]


def test_classes_are_apart():
    account = Account("a", 0)
    queue = queue_of(sequence_of(0, account, 1.0, rank=0), sequence_of(1, account, 1.0, rank=2))
    assert (queue.by_rank[0], queue.by_rank[1], queue.by_rank[2]) == (1, 0, 1)
    assert queue.first(1) is None
    assert drained(queue, 2) == [1]


def test_only_the_first_can_be_set_aside():
    account = Account("a", RANK)
    first, second = sequence_of(0, account, 1.0), sequence_of(1, account, 2.0)
    queue = queue_of(first, second)
    with pytest.raises(InvariantBroken, match="not the first"):
        queue.set_aside(second)


def test_who_is_parked_comes_back_when_the_content_is_settled():
    account = Account("a", RANK)
    queue = queue_of(sequence_of(0, account, 1.0), sequence_of(1, account, 2.0))
    first = queue.first(RANK)
    assert first is not None
    queue.park(first, b"x")
    queue.check_integrity()
    assert queue.first(RANK) is not first
    queue.settle([b"y", b"x"])
    assert drained(queue) == [0, 1]


def test_who_left_while_parked_does_not_come_back():
    account = Account("a", RANK)
    queue = queue_of(sequence_of(0, account, 1.0))
    first = queue.first(RANK)
    assert first is not None
    queue.park(first, b"x")
    queue.remove(first)
    queue.settle([b"x"])
    assert queue.first(RANK) is None
    assert not len(queue)
    queue.check_integrity()


def test_ahead_are_better_classes_ones_own_earlier_and_as_many_of_other_tenants():
    mine, theirs = Account("a", RANK), Account("b", RANK)
    better = sequence_of(0, Account("c", 0), 99.0, rank=0)  # 1 token
    earlier, later = sequence_of(1, mine, 1.0), sequence_of(2, mine, 9.0)
    others = [sequence_of(i, theirs, 50.0) for i in (5, 5, 5, 5)]
    for i, other in enumerate(others):
        other.id = SequenceId(100 + i)
    queue = queue_of(better, earlier, later, *others)
    newcomer = sequence_of(50, mine, 5.0)
    # better, earlier, and two of the others: one before `earlier`'s turn, one before its own
    assert queue.ahead_of(newcomer) == (4, 1 + 2 + 2 * 6)


@given(st.lists(st.floats(0, 10), max_size=30), st.integers(1, 4))
def test_all_who_wait_come_out_least_served_tenant_first(starts: list[float], tenants: int):
    accounts = [Account(f"t{i}", RANK, service=float(i)) for i in range(tenants)]
    sequences = [sequence_of(i, accounts[i % tenants], start) for i, start in enumerate(starts)]
    expected = sorted(sequences, key=lambda s: (s.account.service, s.latest_start, s.id))
    assert drained(queue_of(*sequences)) == [int(s.id) for s in expected]


class Counted(float):
    """A number that counts how often it is compared."""

    count = 0

    def __lt__(self, other: float) -> bool:
        Counted.count += 1
        return float(self) < float(other)

    def __eq__(self, other: object) -> bool:
        Counted.count += 1
        return float(self) == other

    __hash__ = float.__hash__


@pytest.mark.parametrize("num_tenants", [1, 10, 1000])
def test_an_operation_compares_as_often_as_the_logarithm_of_who_waits(num_tenants: int):
    accounts = [Account(f"t{i}", RANK, service=Counted(i)) for i in range(num_tenants)]
    costs = []
    for size in (1_000, 8_000):
        sequences = [
            sequence_of(0, accounts[i % num_tenants], Counted(i * 7919 % size)) for i in range(size)
        ]
        for i, sequence in enumerate(sequences):
            sequence.id = SequenceId(i)
        queue = queue_of(*sequences)
        Counted.count = 0
        for _ in range(200):
            first = queue.first(RANK)
            assert first is not None
            queue.set_aside(first)
            queue.remove(first)
            queue.add(first)
            first.account.charge(Counted(1.0))
        costs.append(Counted.count / 200)
    assert costs[1] <= costs[0] + 40
    assert costs[1] <= 12 * 13
