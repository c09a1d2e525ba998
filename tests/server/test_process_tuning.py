"""Numbers from a pool are as good as those that the system gives one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.server.process_tuning import pooled_bits


@given(sizes=st.lists(st.integers(1, 5000), max_size=60))
def test_each_number_has_bits_of_its_own_and_no_more_than_asked_for(sizes: list[int]):
    calls: list[int] = []

    def ones(number: int) -> bytes:
        calls.append(number)
        return b"\xff" * number

    bits = pooled_bits(ones)
    for size in sizes:
        assert bits(size) == (1 << size) - 1
    wanted = sum((size + 7) // 8 for size in sizes)
    assert sum(calls) >= wanted, "no byte is given twice"


def test_what_the_system_gives_comes_out_once_and_in_order():
    given = iter(range(1, 1 << 20))
    bits = pooled_bits(lambda number: bytes(next(given) % 251 for _ in range(number)))
    assert [bits(8) for _ in range(500)] == [n % 251 for n in range(1, 501)]


def test_numbers_differ():
    bits = pooled_bits()
    assert len({bits(128) for _ in range(1000)}) == 1000
