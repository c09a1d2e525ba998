"""The engine's door: what it objects to whatever gateway sent it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.server.transport.convert import pack_tokens
from headrace.server.transport.door import objection, stranger
from headrace.types import Request, RequestId


@pytest.mark.parametrize(("num_prior", "objects"), [(0, True), (4, True), (5, False), (9, False)])
def test_tokens_of_earlier_attempts_count_towards_min_tokens(num_prior: int, objects: bool):
    request = Request(
        id=RequestId("q~2"), prompt=(1,) * 20, max_tokens=3, min_tokens=8, num_prior=num_prior
    )
    assert (objection(request, vocab_size=10) is not None) == objects


@pytest.mark.parametrize(("tokens", "objects"), [((), False), ((0, 9), False), ((3, 10), True)])
def test_a_token_that_the_model_does_not_have_is_named(tokens: tuple[int, ...], objects: bool):
    wrong = stranger(pack_tokens(tokens), vocab_size=10)
    assert (wrong is not None) == objects
    assert wrong is None or "0 to 9" in wrong


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("weight", value) for value in (float("nan"), 0.0, -1.0, 100.5)),
        *(("itl", value) for value in (float("nan"), float("inf"), 0.0, -1.0)),
        ("first_token_by", float("nan")),
    ],
)
def test_weights_and_targets_that_are_no_numbers_are_objected_to(field: str, value: float):
    request = Request(id=RequestId("q"), prompt=(1,), max_tokens=1)
    assert objection(request, vocab_size=10) is None
    assert objection(replace(request, **{field: value}), vocab_size=10) is not None
