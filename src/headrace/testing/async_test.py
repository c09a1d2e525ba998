"""Tests that are coroutines: each runs on an event loop of its own, within a time limit."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")

LIMIT_SECONDS = 20.0


def async_test(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Make a coroutine function a test that pytest calls like any other."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), LIMIT_SECONDS))

    return run
