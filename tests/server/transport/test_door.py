"""The engine's door: what it objects to whatever gateway sent it."""

from __future__ import annotations

import pytest

from headrace.server.transport.door import objection
from headrace.types import Request, RequestId


@pytest.mark.parametrize(("num_prior", "objects"), [(0, True), (4, True), (5, False), (9, False)])
def test_tokens_of_earlier_attempts_count_towards_min_tokens(num_prior: int, objects: bool):
    request = Request(
        id=RequestId("q~2"), prompt=(1,) * 20, max_tokens=3, min_tokens=8, num_prior=num_prior
    )
    assert (objection(request, vocab_size=10) is not None) == objects
