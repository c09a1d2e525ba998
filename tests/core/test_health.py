"""The failure detector without a Router."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.health import FailureDetector, HealthLimits, Judgement, ReplicaState
from headrace.types import ReplicaId

R0, R1, R2, R3 = (ReplicaId(f"r{index}") for index in range(4))


@dataclass
class Work:
    """A Workload that a test sets."""

    outstanding: int = 0
    decoding: int = 0
    progress_at: float = 0.0
    longest_step: float = 0.1


def detector(*replicas: ReplicaId, limits: HealthLimits | None = None) -> FailureDetector:
    """A detector of replicas that have each answered once."""
    health = FailureDetector(limits)
    for replica in replicas:
        health.add(replica, Work(), 0.0)
        health.succeeded(replica, 0.0)
    return health


def fail(
    health: FailureDetector, replica: ReplicaId, now: float, times: int = 5
) -> Judgement | None:
    judgement = None
    for _ in range(times):
        judgement = health.failed(replica, now, "reset")
    return judgement


def test_a_replica_that_beats_is_suspect_after_three_seconds_of_silence() -> None:
    health = detector(R0)
    health.beat(R0, 1.0)
    assert health.next_at() == 4.0
    health.heard(R0, 2.0)
    assert health.check(4.0) == []
    assert health.next_at() == 5.0
    (judgement,) = health.check(5.0)
    assert judgement == Judgement(R0, ReplicaState.SUSPECT, "no sign of life for 3.0 s")
    assert health.next_at() is None


def test_who_comes_late_to_the_check_blames_nobody() -> None:
    health = detector(R0)
    health.beat(R0, 1.0)
    assert health.check(60.0) == []  # we slept: its beats lie unread
    assert health.next_at() == 63.0
    assert len(health.check(63.0)) == 1


def test_a_slow_model_is_not_stuck() -> None:
    health = FailureDetector()
    work = Work(outstanding=1, longest_step=8.0)
    health.add(R0, work, 0.0)
    health.heard(R0, 0.0, report=True)
    assert health.next_at() == 40.0


def test_ejections_grow_and_are_forgiven() -> None:
    health = detector(R0, R1)
    now = 0.0
    lengths = []
    for _ in range(14):
        judgement = fail(health, R0, now)
        assert judgement is not None
        end = health.next_at()
        assert end is not None
        lengths.append(end - now)
        (probing,) = health.check(end)
        assert probing.state is ReplicaState.PROBING
        trusted = health.succeeded(R0, end)
        assert trusted is not None
        now = end
    assert lengths[:3] == [10.0, 20.0, 30.0]
    assert lengths[-1] == 120.0
    fail(health, R0, now + 1000.0)
    assert health.next_at() == now + 1010.0


def test_never_more_than_half_are_out() -> None:
    health = detector(R0, R1, R2, R3)
    assert fail(health, R0, 0.0) is not None
    assert fail(health, R1, 0.0) is not None
    assert fail(health, R2, 0.0) is None
    assert fail(health, R3, 0.0) is None


def test_where_nobody_else_is_left_the_least_bad_is_tried() -> None:
    health = detector(R0, R1, R2, R3)
    assert health.probe_least_bad(0.0) is None
    fail(health, R0, 1.0)
    fail(health, R1, 0.0)
    health.remove(R2)
    health.remove(R3)
    assert health.probe_least_bad(2.0) == Judgement(
        R1, ReplicaState.PROBING, "every replica is out"
    )


def test_a_success_begins_the_count_anew() -> None:
    health = detector(R0, R1)
    fail(health, R0, 0.0, times=4)
    health.succeeded(R0, 0.0)
    assert fail(health, R0, 0.0, times=4) is None


def test_one_that_never_answered_well_is_out_after_three_failures() -> None:
    health = detector(R1, R2)
    health.add(R0, Work(), 0.0)
    assert fail(health, R0, 0.0, times=2) is None
    judgement = health.failed(R0, 0.0, "reset")
    assert judgement is not None
    assert judgement.reason == "out for 10 s: 3 failures in a row, last: reset"


def test_a_failed_probe_is_out_for_longer_whatever_the_cap_says() -> None:
    health = detector(R0, R1)
    fail(health, R0, 0.0)
    health.check(10.0)
    judgement = health.failed(R0, 10.0, "reset")
    assert judgement is not None
    assert (judgement.state, health.next_at()) == (ReplicaState.EJECTED, 30.0)
    assert health.failed(R0, 11.0, "reset") is None  # what was under way adds nothing


def test_a_replica_is_late_sooner_once_its_steps_are_known_to_be_quicker() -> None:
    work = Work(outstanding=1, longest_step=4.0)
    health = FailureDetector()
    health.add(R0, work, 0.0)
    health.heard(R0, 0.0, report=True)
    assert health.next_at() == 20.0
    work.longest_step = 3.0
    health.watch(R0, 1.0, given=False)
    assert health.next_at() == 15.0
    health.check_integrity()


def test_a_replica_that_came_back_as_another_process_is_new() -> None:
    health = detector(R0, R1)
    fail(health, R0, 0.0)
    health.remove(R0)
    health.add(R0, Work(), 5.0)
    assert health.state(R0) is ReplicaState.READY
    assert fail(health, R0, 5.0, times=3) is not None


class DetectorStates(RuleBasedStateMachine):
    """Any order of events: it wants to be woken in time, and never blames without a reason."""

    @initialize()
    def start(self) -> None:
        self.health = FailureDetector(HealthLimits(max_failures=2))
        self.now = 0.0
        self.work: dict[ReplicaId, Work] = {}

    @rule(replica=st.sampled_from([R0, R1, R2, R3]))
    def come(self, replica: ReplicaId) -> None:
        self.work[replica] = Work(progress_at=self.now)
        self.health.add(replica, self.work[replica], self.now)

    @precondition(lambda self: self.work)
    @rule(data=st.data(), what=st.sampled_from(["beat", "heard", "report", "ok", "bad", "go"]))
    def happen(self, data: st.DataObject, what: str) -> None:
        replica = data.draw(st.sampled_from(sorted(self.work)))
        health = self.health
        match what:
            case "beat":
                health.beat(replica, self.now)
            case "heard":
                health.heard(replica, self.now)
            case "report":
                self.work[replica].progress_at = self.now
                health.heard(replica, self.now, report=True, progress=True)
            case "ok":
                health.succeeded(replica, self.now)
            case "bad":
                health.failed(replica, self.now, "test")
            case _:
                health.remove(replica)
                del self.work[replica]

    @precondition(lambda self: self.work)
    @rule(data=st.data())
    def get_work(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(self.work)))
        work = self.work[replica]
        if work.outstanding == 0:
            work.progress_at = self.now
        unwatched = work.outstanding == work.decoding
        work.outstanding += 1
        if unwatched:
            self.health.watch(replica, self.now)

    @precondition(lambda self: self.work)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        work = self.work[data.draw(st.sampled_from(sorted(self.work)))]
        work.decoding = work.outstanding
        work.progress_at = self.now

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_as_asked(self) -> None:
        self.now = max(self.now, self.health.next_at() or 0.0)

    @invariant()
    def it_is_woken_in_time(self) -> None:
        before = {replica: self.health.state(replica) for replica in self.work}
        for judgement in self.health.check(self.now):
            assert before[judgement.replica] is not judgement.state, "said twice"
            assert judgement.reason
        self.health.check_integrity()
        due = self.health.next_at()
        assert due is None or due > self.now


TestDetectorStates = DetectorStates.TestCase
TestDetectorStates.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
