"""What a foreign replica answers, judged: a stream of events, or one JSON body.

A stream is passed on in whole events, untouched, one write for each read. Each event's JSON is
looked at once (about 0.3 us): it must be JSON, and some event must finish a choice before
``[DONE]`` is believed, and all events with an id must have the same: another one is another
client's. A replica that repeats an event cannot be told from one that says the same word twice;
what can be told from the bytes alone is told.

Event streams: WHATWG HTML, section 9.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import ProtocolError
from headrace.server.gateway.foreign.answer_json import decode_answer

if TYPE_CHECKING:
    from headrace.server.gateway.foreign.answer_json import UsageFields
    from headrace.types import Tokens

_BORDER = b"\n\n"
_DATA = b"data:"
_DONE = b"[DONE]"


class Billing(NamedTuple):
    """Tokens, as a replica counted them. Many do not say how much they had cached: None."""

    prompt_tokens: Tokens
    output_tokens: Tokens
    cached_tokens: Tokens | None


class StreamJudge:
    """Cuts one stream at the borders of its events. ``billing`` is None until the replica says."""

    def __init__(self, *, max_event_bytes: int, check_ids: bool = True) -> None:
        self.billing: Billing | None = None
        self.is_done = False
        self.num_events = 0
        self._max_event_bytes = max_event_bytes
        self._check_ids = check_ids
        self._id: str | None = None  # of the answer
        self._rest = b""
        self._is_finished = False  # some choice has a finish reason, or an error was said

    def take(self, data: bytes) -> bytes:
        """Return the whole events that are there now, perhaps none. Raises ProtocolError.

        Nothing is returned of what follows ``[DONE]``, which sets ``is_done``.
        """
        if self.is_done:
            return b""
        if self._rest:
            data = self._rest + data
        events, self._rest = _cut(data)
        if len(self._rest) > self._max_event_bytes:
            raise ProtocolError(f"an event of its stream is over {self._max_event_bytes} bytes")
        plain = events.replace(b"\r\n", b"\n") if b"\r" in events else events
        for event in plain.split(_BORDER):
            if event:
                self._judge(event)
        return events

    def end(self) -> None:
        """The stream is over. Raises ProtocolError where it may not be."""
        if not self.is_done:
            raise ProtocolError("its stream ended without [DONE]")

    def _judge(self, event: bytes) -> None:
        if not event.startswith(_DATA):
            event = b"".join(line for line in event.split(b"\n") if line.startswith(_DATA))
            if not event:
                return  # a comment, or a field that means nothing here
        data = event[len(_DATA) :].strip()
        if data == _DONE:
            if not self._is_finished:
                raise ProtocolError("its stream says [DONE] and no choice was finished")
            self.is_done = True
            return
        content = decode_answer(data)
        self.num_events += 1
        if content.id != self._id:
            self._identify(content.id)
        for choice in content.choices:
            if choice.finish_reason is not None:
                self._is_finished = True
        if content.usage is not None:
            self.billing = _billing(content.usage)
        if content.error:
            self._is_finished = True  # it says itself that it failed, and the client reads it

    def _identify(self, name: str | None) -> None:
        """Take the first id that is said; another one is an error."""
        if self._id is None:
            self._id = name
        elif name is not None and self._check_ids:
            raise ProtocolError(f"an event of {name[:80]!r} came in the answer {self._id[:80]!r}")


def judge_whole(body: bytes) -> Billing | None:
    """Return what a whole answer bills. Raises ProtocolError if it is no JSON object."""
    usage = decode_answer(body).usage
    return None if usage is None else _billing(usage)


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """Return (whole events, the rest)."""
    if data.endswith(_BORDER):
        return data, b""
    end = data.rfind(_BORDER) + len(_BORDER)
    other = data.rfind(b"\r\n\r\n") + 4
    end = max(end if end >= len(_BORDER) else 0, other if other >= 4 else 0)
    return data[:end], data[end:]


def _billing(usage: UsageFields) -> Billing:
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details is not None else None
    return Billing(usage.prompt_tokens, usage.completion_tokens, cached)
