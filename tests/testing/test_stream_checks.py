"""What the checker of streams sees, and that it looks at the right things."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.testing.stream_checks import Difference, Oracle, check, difference
from headrace.testing.streams import Asked, ErrorObject, Heard, Usage
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

ASKED = Asked(prompt="the mill", max_tokens=12, seed=3, temperature=0.8)
PIECES = tuple(f"<{i}>" for i in range(10))
WHOLE = "".join(PIECES)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    path: Path = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return Oracle(path)


def heard_well(oracle: Oracle, asked: Asked = ASKED) -> Heard:
    return Heard(
        asked=asked,
        started_at=0.0,
        ended_at=1.0,
        status=200,
        pieces=[piece for piece in oracle.pieces(asked) if piece],
        finishes=["length"],
        usage=Usage(prompt_tokens=2, completion_tokens=asked.max_tokens),
        num_done=1,
    )


def test_a_right_answer_has_no_fault(oracle: Oracle):
    verdict = check(oracle, [heard_well(oracle)])
    assert (verdict.requests, verdict.answered, verdict.failed) == (1, 1, 0)
    assert verdict.is_exact
    assert verdict.examples == []


def test_the_oracle_knows_seeds_prompts_and_chats(oracle: Oracle):
    others = (
        Asked(prompt="the mill", max_tokens=12, seed=4, temperature=0.8),
        Asked(prompt="the mills", max_tokens=12, seed=3, temperature=0.8),
        Asked(prompt="the mill", max_tokens=12, seed=3),
        Asked(prompt="the mill", max_tokens=12, seed=3, temperature=0.8, chat=True),
    )
    texts = {tuple(oracle.pieces(asked)) for asked in (ASKED, *others)}
    assert len(texts) == 5
    longer = Asked(prompt="the mill", max_tokens=20, seed=3, temperature=0.8)
    assert oracle.pieces(longer)[:11] == oracle.pieces(ASKED)[:11]


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (WHOLE, Difference()),
        (WHOLE.replace("<4>", ""), Difference(lost=1)),
        (WHOLE.replace("<4><5><6>", ""), Difference(lost=3)),
        (WHOLE.replace("<4>", "<4><4>"), Difference(duplicated=1)),
        (WHOLE.replace("<4>", "<4><2><3><4>"), Difference(duplicated=3)),
        (WHOLE.replace("<4>", "<x>"), Difference(foreign=6)),
        (WHOLE[:12], Difference(lost=6)),
        ("", Difference(lost=10)),
    ],
)
def test_wrong_tokens_are_told_apart(heard: str, expected: Difference):
    assert difference(PIECES, heard, whole=True) == expected


def test_an_answer_that_broke_off_may_be_short_but_not_different():
    assert difference(PIECES, WHOLE[:13], whole=False) == Difference()
    assert difference(PIECES, "", whole=False) == Difference()
    assert difference(PIECES, "<0><1><3>", whole=False) == Difference(lost=1)
    assert difference(PIECES, "<0><1><x>", whole=False) == Difference(foreign=8)


@given(st.data())
def test_any_gap_or_repetition_is_counted_in_tokens(data: st.DataObject):
    begin = data.draw(st.integers(0, 9))
    end = data.draw(st.integers(begin + 1, 10))
    without = "".join(PIECES[:begin] + PIECES[end:])
    assert difference(PIECES, without, whole=True) == Difference(lost=end - begin)
    if end < 10:
        again = "".join(PIECES[:end] + PIECES[begin:])
        assert difference(PIECES, again, whole=True) == Difference(duplicated=end - begin)


@pytest.mark.parametrize(
    "change",
    [
        {"num_done": 0},
        {"num_done": 2},
        {"num_late": 1},
        {"finishes": ["length", "length"]},
        {"finishes": []},
    ],
)
def test_an_answer_ends_exactly_once(oracle: Oracle, change: dict[str, object]):
    heard = heard_well(oracle)
    for name, value in change.items():
        setattr(heard, name, value)
    assert check(oracle, [heard]).bad_ends == 1


def test_usage_counts_what_was_streamed(oracle: Oracle):
    heard = heard_well(oracle)
    heard.usage = Usage(prompt_tokens=2, completion_tokens=11)
    assert check(oracle, [heard]).wrong_usages == 1


def test_an_error_in_a_stream_is_a_failure_of_the_right_shape(oracle: Oracle):
    heard = heard_well(oracle)
    heard.pieces, heard.finishes, heard.usage = heard.pieces[:3], [], None
    heard.errors = [ErrorObject(message="lost", type="server_error", code="worker_lost")]
    verdict = check(oracle, [heard])
    assert verdict.failed == 1
    assert verdict.is_exact
    heard.errors = [ErrorObject(message="lost", type="server_error")]
    assert check(oracle, [heard]).bad_errors == 1


def test_a_503_says_when_to_come_back(oracle: Oracle):
    error = ErrorObject(message="full", type="overloaded_error", code="overloaded")
    heard = Heard(asked=ASKED, started_at=0.0, ended_at=1.0, status=503, errors=[error])
    assert check(oracle, [heard]).bad_errors == 1
    heard.headers["retry-after"] = "1"
    verdict = check(oracle, [heard])
    assert (verdict.failed, verdict.bad_errors) == (1, 0)


def test_a_client_that_went_away_has_not_failed(oracle: Oracle):
    heard = heard_well(oracle)
    heard.pieces, heard.finishes, heard.usage, heard.left = heard.pieces[:3], [], None, True
    heard.num_done = 0
    verdict = check(oracle, [heard])
    assert (verdict.left, verdict.failed, verdict.is_exact) == (1, 0, True)
