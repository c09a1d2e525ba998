"""The request parser against h11, and its bounds."""

from __future__ import annotations

import itertools

import h11
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.errors import RequestError
from headrace.server.gateway.http.limits import HttpLimits
from headrace.server.gateway.http.messages import HttpRequest
from headrace.server.gateway.http.reading import Phase, RequestReader

CHUNKED = (
    b"POST /a?b HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: u\r\n\r\n"
)
PLAIN = b"POST /a HTTP/1.1\r\nhost: [::1]\r\nX: y\r\ncontent-length: 5\r\n\r\nabcde"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
PIECES = [
    b"Host: a\r\n", b"host:b\r\n", b"Content-Length: 3\r\n", b"content-length:0\r\n",
    b"Content-Length: 3, 3\r\n", b"Transfer-Encoding: chunked\r\n", b"TE: x\r\n",
    b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: CHUNKED\r\n", b" folded\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n", b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"3\r\nabc\r\n",
    b"abc", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"\0", b"\x85",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"X: \xff\r\n", b"X\xe9: y\r\n",
]  # fmt: skip


def read_all(data: bytes, cuts: tuple[int, ...] = ()) -> list[HttpRequest | RequestError]:
    reader = RequestReader(HttpLimits(), lambda head: None)
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(borders):
        reader.feed(data[begin:end])
    return list(reader.ready)


def read_with_h11(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The whole requests that h11 sees before it refuses the rest or needs more.

    Empty lines before a request are dropped, as RFC 9112 section 2.2 advises and h11 does not.
    """
    requests = []
    try:
        while data := data.lstrip(b"\r\n"):
            parser = h11.Connection(h11.SERVER)
            parser.receive_data(data)
            head = parser.next_event()
            if not isinstance(head, h11.Request):
                break
            body = b""
            while isinstance(event := parser.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                break
            requests.append((head.method, head.target.split(b"?")[0], body))
            data = parser.trailing_data[0]
    except h11.RemoteProtocolError:
        pass
    return requests


well_formed = st.sampled_from([CHUNKED, PLAIN, GET])
streams = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join),
    st.lists(st.one_of(well_formed, st.sampled_from(PIECES)), max_size=4).map(b"".join),
    st.tuples(well_formed, st.integers(0, 150), st.sampled_from(PIECES)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
    ),
    st.tuples(well_formed, st.integers(0, 150), st.integers(1, 9)).map(
        lambda t: t[0][: t[1]] + t[0][t[1] + t[2] :]
    ),
)


@given(streams)
@example(CHUNKED + PLAIN + GET)
def test_what_is_accepted_h11_reads_as_the_same_requests(data: bytes) -> None:
    """We may be stricter, never softer or different: the reference would see other requests."""
    ours = [
        (request.head.method.encode(), request.head.path.encode(), bytes(request.body))
        for request in read_all(data)
        if isinstance(request, HttpRequest)
    ]
    assert ours == read_with_h11(data)[: len(ours)]


@given(streams, st.lists(st.integers(0, 500), max_size=8).map(tuple))
def test_how_the_bytes_are_cut_makes_no_difference(data: bytes, cuts: tuple[int, ...]) -> None:
    def seen(requests: list[HttpRequest | RequestError]) -> list[object]:
        return [request if isinstance(request, HttpRequest) else "error" for request in requests]

    assert seen(read_all(data, cuts)) == seen(read_all(data))


@given(st.binary(max_size=200))
def test_noise_is_refused_and_never_raises(data: bytes) -> None:
    for request in read_all(data):
        assert isinstance(request, RequestError)


def test_at_most_one_error_comes_and_it_is_the_last() -> None:
    first, second = read_all(GET + b"x\r\n" + GET)
    assert isinstance(first, HttpRequest)
    assert isinstance(second, RequestError)


def test_a_request_may_be_refused_by_its_head_before_its_body() -> None:
    refusal = RequestError("no")
    reader = RequestReader(HttpLimits(), lambda head: refusal if head.path == "/a" else None)
    reader.feed(PLAIN[:-5])
    assert list(reader.ready) == [refusal]
    assert reader.phase is Phase.FAILED


def test_repeated_fields_are_joined() -> None:
    (request,) = read_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nx: 2\r\n\r\n")
    assert isinstance(request, HttpRequest)
    assert request.head.headers[b"x"] == b"1, 2"


def test_trailer_fields_are_dropped() -> None:
    (request,) = read_all(CHUNKED.replace(b"T: u", b"Authorization: Bearer x"))
    assert isinstance(request, HttpRequest)
    assert b"authorization" not in request.head.headers


def test_a_kept_connection_is_asked_about_inside_the_callback() -> None:
    """httptools answers "no" outside: every request would get a connection of its own."""
    (request,) = read_all(GET)
    assert isinstance(request, HttpRequest)
    assert request.head.keep_alive
