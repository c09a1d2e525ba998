"""Streams and bodies of foreign replicas, judged by their bytes."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ProtocolError
from headrace.server.gateway.foreign.answers import Billing, StreamJudge, judge_whole

DONE = b"data: [DONE]\n\n"


def event(text: str = "a", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":2}}}\n\n'
)
WHOLE = b": hello\n\n" + event("one\n\ntwo") + event("x") + event("", "stop") + USAGE + DONE


def judged(*pieces: bytes, max_event_bytes: int = 1 << 16) -> tuple[bytes, StreamJudge]:
    judge = StreamJudge(max_event_bytes=max_event_bytes)
    passed = b"".join(judge.take(piece) for piece in pieces)
    return passed, judge


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12), st.booleans())
def test_a_stream_passes_unchanged_however_it_is_cut(cuts: list[int], crlf: bool) -> None:
    whole = WHOLE.replace(b"\n", b"\r\n") if crlf else WHOLE
    borders = [0, *sorted(cuts), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(borders)]
    passed, judge = judged(*pieces)
    judge.end()
    assert passed == whole
    assert judge.is_done
    assert judge.billing == Billing(7, 3, 2)


def test_half_an_event_is_kept_back() -> None:
    one, two = event("one"), event("two")
    passed, judge = judged(one + two[:10])
    assert passed == one
    assert judge.take(two[10:]) == two


def test_a_stream_that_just_ends_is_no_success() -> None:
    _, judge = judged(event(), event("", "stop"))
    with pytest.raises(ProtocolError, match="without \\[DONE\\]"):
        judge.end()


def test_done_without_a_finish_is_not_believed() -> None:
    with pytest.raises(ProtocolError, match="no choice was finished"):
        judged(event(), DONE)


def test_text_that_looks_like_a_finish_is_none() -> None:
    with pytest.raises(ProtocolError, match="no choice was finished"):
        judged(event('"finish_reason":"stop"'), DONE)


def test_nothing_after_done_is_passed_on() -> None:
    passed, judge = judged(event("", "stop"), DONE, event("more"))
    assert passed == event("", "stop") + DONE
    judge.end()


@pytest.mark.parametrize("broken", [b'data: {"choices":[}\n\n', b"data: [1,2]\n\n", b"data: \n\n"])
def test_an_event_that_is_no_json_object_breaks_the_stream(broken: bytes) -> None:
    with pytest.raises(ProtocolError, match="JSON is broken"):
        judged(event(), broken)


def test_an_endless_event_is_noticed_before_it_is_kept() -> None:
    judge = StreamJudge(max_event_bytes=1000)
    for _ in range(10):
        assert judge.take(b"x" * 100) == b""
    with pytest.raises(ProtocolError, match="over 1000 bytes"):
        judge.take(b"x")


def test_an_error_that_a_replica_says_itself_is_passed_on() -> None:
    error = b'data: {"error":{"message":"out of memory"}}\n\n'
    passed, judge = judged(event(), error + DONE)
    assert passed.endswith(error + DONE)
    judge.end()


def test_an_event_of_several_lines_is_put_together() -> None:
    passed, judge = judged(b'event: delta\ndata: {"choices":[]}\nid: 3\n\n')
    assert passed
    assert judge.num_events == 1


def test_a_whole_answer_says_what_it_bills() -> None:
    assert judge_whole(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}') == (
        Billing(1, 2, None)
    )
    assert judge_whole(b'{"data":[]}') is None


@pytest.mark.parametrize("body", [b"", b'{"choices":[{"text":"cut o', b"[]", b"\xff", b"nope"])
def test_a_whole_answer_that_is_broken_is_noticed(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="JSON is broken"):
        judge_whole(body)


def named(name: str | None, finish: str | None = None) -> bytes:
    content = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": finish}]}
    return (
        b"data: "
        + json.dumps(content if name is None else {"id": name, **content}).encode()
        + b"\n\n"
    )


def test_an_event_of_another_answer_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="an event of 'b' came in the answer 'a'"):
        judged(named("a"), named("b"))
    judge = StreamJudge(max_event_bytes=1 << 16, check_ids=False)
    assert judge.take(named("a") + named("b", "stop") + DONE)
    assert judge.is_done


def test_events_need_no_id_and_an_empty_one_is_one() -> None:
    for names in ((None, None), (None, "a"), ("a", None, "a"), ("", "")):
        _, judge = judged(*(named(name, "stop") for name in names), DONE)
        assert judge.is_done
