"""The prefix index against one that is written to be obvious."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from headrace.core.balancer.prefix_index import PrefixIndex
from headrace.types import BlockKey, ReplicaId

REPLICAS = [ReplicaId(f"r{index}") for index in range(4)]
MAX_KEYS = 20
LOOKS_FOR_ONE = 2 + (80).bit_length()  # the ends of the longest run, and halves of it

some_keys = st.lists(st.integers(0, 90).map(BlockKey), max_size=12)
runs = st.tuples(st.integers(0, 20), st.integers(0, 80)).map(
    lambda ends: [BlockKey(key) for key in range(ends[0], sum(ends))]
)


class IndexStates(RuleBasedStateMachine):
    """Beside the index: a list of what each replica holds, and a count of what is expected."""

    @initialize(max_keys=st.sampled_from([MAX_KEYS, 1000]))
    def start(self, max_keys: int) -> None:
        self.max_keys = max_keys
        self.index = PrefixIndex(max_keys=max_keys)
        self.held: dict[ReplicaId, list[BlockKey]] = {}
        self.expected: dict[ReplicaId, Counter[BlockKey]] = {}

    @rule(replica=st.sampled_from(REPLICAS))
    def add(self, replica: ReplicaId) -> None:
        self.index.add(replica)
        self.held[replica] = []
        self.expected[replica] = Counter()

    @rule(replica=st.sampled_from(REPLICAS))
    def drop(self, replica: ReplicaId) -> None:
        self.index.drop(replica)
        self.held.pop(replica, None)
        self.expected.pop(replica, None)

    def hold(self, replica: ReplicaId, keys: list[BlockKey]) -> None:
        for key in keys:
            if len(self.held[replica]) < self.max_keys and key not in self.held[replica]:
                self.held[replica].append(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keys=runs | some_keys)
    def store(self, data: st.DataObject, keys: list[BlockKey]) -> None:
        replica = data.draw(st.sampled_from(sorted(self.held)))
        self.index.store(replica, keys)
        self.hold(replica, keys)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keys=some_keys)
    def remove(self, data: st.DataObject, keys: list[BlockKey]) -> None:
        replica = data.draw(st.sampled_from(sorted(self.held)))
        self.index.remove(replica, keys)
        self.held[replica] = [key for key in self.held[replica] if key not in keys]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keys=runs)
    def replace(self, data: st.DataObject, keys: list[BlockKey]) -> None:
        replica = data.draw(st.sampled_from(sorted(self.held)))
        self.index.replace(replica, keys)
        self.held[replica] = []
        self.hold(replica, keys)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keys=runs, limit=st.integers(0, 15))
    def assume(self, data: st.DataObject, keys: list[BlockKey], limit: int) -> None:
        replica = data.draw(st.sampled_from(sorted(self.held)))
        self.index.assume(replica, keys, limit=limit)
        kept = [key for key in self.held[replica] if key not in keys]
        self.held[replica] = [*kept, *reversed(keys)][-limit:] if limit else []

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keys=runs)
    def expect(self, data: st.DataObject, keys: list[BlockKey]) -> None:
        replica = data.draw(st.sampled_from(sorted(self.held)))
        self.index.expect(replica, keys)
        self.expected[replica].update(keys)

    @precondition(lambda self: any(self.expected.values()))
    @rule(data=st.data())
    def unexpect(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(r for r, c in self.expected.items() if +c)))
        keys = sorted(+self.expected[replica])
        self.index.unexpect(replica, keys)
        self.expected[replica] -= Counter(keys)

    @rule(keys=runs | some_keys, looks=st.sampled_from([1, 2, 5, LOOKS_FOR_ONE, 1000]))
    def match(self, keys: list[BlockKey], looks: int) -> None:
        """Exact where replicas have no gaps, if it may look often enough; else never too much."""
        found = self.index.match(keys, looks)
        truth: dict[ReplicaId, list[bool]] = {}
        for replica in self.held:
            held, expected = self.held[replica], self.expected[replica]
            has = truth[replica] = [key in held or expected[key] > 0 for key in keys]
            depth = found.get(replica, 0)
            assert (depth > 0) == any(has[:1])
            assert not depth or has[depth - 1], "the end of a run"
            if looks == 1000:
                assert depth == len(keys) or not has[depth] or not has[0]
        assert found.keys() <= self.held.keys()
        if all(has == sorted(has, reverse=True) for has in truth.values()):
            most = max(map(sum, truth.values()), default=0)
            for replica, has in truth.items():
                depth = found.get(replica, 0)
                assert depth <= sum(has)
                if looks == 1000 or (looks >= LOOKS_FOR_ONE and sum(has) == most):
                    assert depth == sum(has)
        self.index.check_integrity()

    def teardown(self) -> None:
        for replica in REPLICAS:
            self.drop(replica)
        self.index.check_integrity()
        assert len(self.index) == 0


TestIndexStates = IndexStates.TestCase
TestIndexStates.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_slots_of_replicas_that_went_are_used_again() -> None:
    index = PrefixIndex()
    for number in range(500):
        replica = ReplicaId(f"r{number}")
        index.add(replica)
        index.store(replica, [BlockKey(1)])
        assert index.match([BlockKey(1)], 1) == {replica: 1}
        index.drop(replica)
    index.add(ReplicaId("last"))
    index.check_integrity()
