"""Links: order, delay, loss."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.machine import Source
from headrace.twin.network import Delay, Link
from headrace.twin.simulator import Simulator


def link_of(simulator: Simulator, seen: list[tuple[float, int]], delay: Delay) -> Link[int]:
    random = np.random.default_rng(0)
    return Link(simulator, lambda m: seen.append((simulator.now, m)), delay=delay, random=random)


def test_a_message_takes_its_time():
    simulator, seen = Simulator(), []
    link = link_of(simulator, seen, Delay(seconds=0.25))
    link.send(1)
    simulator.call_at(1.0, lambda: link.send(2), Source.PEER)
    simulator.run()
    assert seen == [(0.25, 1), (1.25, 2)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 5), st.floats(0, 5))
def test_messages_come_in_order_and_none_is_lost(
    times: list[float], seconds: float, jitter: float
) -> None:
    simulator, seen = Simulator(), []
    link = link_of(simulator, seen, Delay(seconds=seconds, jitter=jitter))
    for number, at in enumerate(sorted(times)):
        simulator.call_at(at, lambda number=number: link.send(number), Source.PEER)
    simulator.run()
    assert [number for _, number in seen] == list(range(len(times)))
    for (arrived, _), at in zip(seen, sorted(times), strict=True):
        assert arrived >= at + seconds


def test_what_is_on_its_way_is_lost_when_the_link_is_cut():
    simulator, seen = Simulator(), []
    link = link_of(simulator, seen, Delay(seconds=1.0))
    link.send(1)
    simulator.run()
    link.send(2)
    simulator.call_at(1.5, link.cut, Source.PEER)
    simulator.call_at(1.6, lambda: link.send(3), Source.PEER)
    simulator.run()
    assert seen == [(1.0, 1)]
