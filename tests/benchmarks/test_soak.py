"""When a soak takes a server to be warm, and memory to leak."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest
import soak
from processes import Footprint

METRICS = """\
headrace_kv_blocks{{replica="r0",state="used"}} 60
headrace_kv_blocks{{replica="r0",state="cached"}} 940
headrace_kv_blocks{{replica="r0",state="empty"}} {empty}
"""


class Pages:
    """A client of a server with so many empty blocks."""

    def __init__(self, empty: int) -> None:
        self._text = METRICS.format(empty=empty)

    async def get(self, _path: str) -> bytes:
        return self._text.encode()


@pytest.mark.parametrize(("empty", "is_full"), [(0, True), (9, True), (20, False), (500, False)])
async def test_a_cache_is_full_when_hardly_a_block_is_empty(empty: int, is_full: bool):
    observer = soak.Observer(
        server=None,
        client=Pages(empty),
        metric="",
        empty_metric='headrace_kv_blocks{state="empty"}',
    )
    assert await observer.has_been_full() is is_full


@pytest.mark.parametrize(("growth", "num_faults"), [(1.5, 0), (4.0, 1)])
def test_memory_that_grows_by_four_megabytes_a_minute_is_a_fault(growth: float, num_faults: int):
    times = [5.0 * i for i in range(24)]
    slope = soak.slope_per_minute(times, [1000 + growth * at / 60 for at in times])
    foot = Footprint(processes=3, fds=50, rss_mb=1000.0, pss_mb=900.0)
    point = soak.Point(at=0.0, footprint=foot, kv_used=0.0)
    asked = argparse.Namespace(kv_metric="", max_slope=2.0)
    assert (
        len(soak.find_faults(SimpleNamespace(errors=()), point, point, slope, asked)) == num_faults
    )
