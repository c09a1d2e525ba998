"""When a dead process is started again."""

from __future__ import annotations

from headrace.server.restarts import HEALTHY_SECONDS, RestartLimits, RestartPolicy

LIMITS = RestartLimits(min_seconds=1, max_seconds=60, crash_loop_deaths=5)


def test_pauses_double_up_to_their_limit():
    policy = RestartPolicy(LIMITS)
    pauses = [policy.died(ready_seconds=0.5) for _ in range(9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_service_for_a_while_makes_earlier_deaths_forgotten():
    policy = RestartPolicy(LIMITS)
    for _ in range(6):
        policy.died(ready_seconds=1)
    assert policy.is_crash_loop
    assert policy.died(ready_seconds=HEALTHY_SECONDS) == 1
    assert not policy.is_crash_loop


def test_a_crash_loop_is_hopeless_only_if_the_process_never_was_ready():
    never, once = RestartPolicy(LIMITS), RestartPolicy(LIMITS)
    once.died(ready_seconds=0)
    for _ in range(5):
        never.died(ready_seconds=None)
        once.died(ready_seconds=None)
    assert never.is_hopeless
    assert once.is_crash_loop
    assert not once.is_hopeless
