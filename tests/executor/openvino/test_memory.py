"""What an executor holds beside its weights and caches stays the same however steps vary."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from executor_steps import EXACT, TinyModel, row, start, step, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.executor.openvino.executor import OpenVinoExecutor

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's malloc")

SIZES = 60
BLOCKS = [0, 1, 2]


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def allocated() -> int:
    """Return the bytes that malloc has given out in this process."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def growth(executor: OpenVinoExecutor) -> int:
    """Return the bytes that prompts of SIZES lengths add."""
    step(executor, row(0, 0, tokens_of(SIZES), BLOCKS), starts=(start(0),))
    before = allocated()
    for size in range(1, SIZES):
        step(executor, row(0, 0, tokens_of(size), BLOCKS))
    return allocated() - before


def test_steps_of_ever_new_sizes_add_little_memory(tiny: Callable[..., TinyModel]):
    model = tiny()
    few, many = (replace(EXACT, cached_kernels=number) for number in (4, 5000))
    growth(model.executor(few))  # what a process has once
    bounded, unbounded = growth(model.executor(few)), growth(model.executor(many))
    assert unbounded > 2 << 20
    assert bounded < unbounded / 4
