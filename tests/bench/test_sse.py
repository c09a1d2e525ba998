"""The SSE parser: same events however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench import sse
from headrace.bench.sse import EventTooLong, SseParser

line_text = st.text(
    alphabet=st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]),
    max_size=20,
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Return a stream's bytes and the events in it."""
    events = draw(st.lists(st.lists(line_text, min_size=1, max_size=3), max_size=5))
    out = ""
    for lines in events:
        for line in lines:
            out += draw(st.sampled_from(["", ": ping", "id: 7", "event: x"])) or "retry: 1"
            out += draw(st.sampled_from(["\n", "\r\n", "\r"]))
            out += "data: " + line + draw(st.sampled_from(["\n", "\r\n", "\r"]))
        out += "\r\n" if out.endswith("\r") else draw(st.sampled_from(["\n", "\r\n"]))
    return out.encode(), ["\n".join(lines).encode() for lines in events]


@given(streams(), st.data())
def test_events_do_not_depend_on_how_the_bytes_are_split(
    stream: tuple[bytes, list[bytes]], data: st.DataObject
):
    content, expected = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=12)))
    edges = [0, *cuts, len(content)]
    parser = SseParser()
    events = []
    for start, end in itertools.pairwise(edges):
        events += parser.feed(content[start:end])
    assert events == expected
    whole = SseParser()
    assert whole.feed(content) == expected
    single = SseParser()
    assert [e for byte in content for e in single.feed(bytes([byte]))] == expected


def test_comments_and_other_fields_make_no_event():
    assert SseParser().feed(b": ping\n\nevent: x\n\ndata:a\n\n") == [b"a"]


def test_a_byte_order_mark_at_the_start_is_dropped():
    assert SseParser().feed(b"\xef\xbb\xbfdata: a\n\n") == [b"a"]


def test_an_unfinished_event_is_held_back():
    parser = SseParser()
    assert parser.feed(b"data: a\ndata: b\n") == []
    assert parser.feed(b"\n") == [b"a\nb"]


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "MAX_PENDING_BYTES", 100)
    with pytest.raises(EventTooLong):
        SseParser().feed(b"data: " + b"x" * 200)
