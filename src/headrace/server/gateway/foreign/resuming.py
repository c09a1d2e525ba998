"""What a client has of a stream, kept so that it can go on where another replica is.

The bytes that were sent are kept as they are, and read only when they are many or a replica
breaks off. What is known then is the text, about how many tokens it has, and their ids where the
server told them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.types import TokenId, Tokens

_FOLD_BYTES = 32 * 1024  # of events kept unread
_DATA = b"data:"


class CannotResume(Exception):
    """A stream cannot go on elsewhere. The message completes "because ..."."""


@dataclass(slots=True)
class Sent:
    """The part of a stream that its client has."""

    id: str | None = None
    created: int | None = None
    model: str | None = None
    texts: list[str] = field(default_factory=list)
    num_events: int = 0  # with text: about one for each token
    billed_tokens: Tokens = 0  # as the replica counted them on the way, if it did
    token_ids: list[TokenId] = field(default_factory=list)
    prompt_ids: list[TokenId] = field(default_factory=list)
    has_all_ids: bool = True
    unfit: str = ""  # why it cannot go on

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    @property
    def num_tokens(self) -> Tokens:
        """As well as it is known."""
        return self.billed_tokens or len(self.token_ids) or self.num_events


class Kept(Protocol):
    """Keeps what a client gets."""

    @property
    def why_not(self) -> str:
        """Why it cannot go on, as far as that is known already; "" while there is hope."""
        ...

    def note(self, events: bytes) -> None:
        """The client gets these whole events."""
        ...

    def sent(self) -> Sent:
        """Return all it got. Raises CannotResume."""
        ...


class NothingKept:
    """A Kept that keeps nothing."""

    def __init__(self, why_not: str = "nothing was kept of it") -> None:
        self.why_not = why_not

    def note(self, events: bytes) -> None:
        """See Kept."""

    def sent(self) -> Sent:
        """See Kept."""
        raise CannotResume(self.why_not)


class KeptStream:
    """A Kept that holds 32 KB of events and ``max_bytes`` of text at most."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._raw = bytearray()
        self._sent = Sent()
        self._num_bytes = 0

    @property
    def why_not(self) -> str:
        """See Kept."""
        return self._sent.unfit

    def note(self, events: bytes) -> None:
        """See Kept."""
        self._raw += events
        if len(self._raw) > _FOLD_BYTES:
            self._fold()

    def sent(self) -> Sent:
        """See Kept."""
        self._fold()
        if self._sent.unfit:
            raise CannotResume(self._sent.unfit)
        return self._sent

    def _fold(self) -> None:
        """Read what was kept unread."""
        sent = self._sent
        for data in event_data(bytes(self._raw)):
            if sent.unfit:
                break
            _take(sent, _decode(data))
            self._num_bytes += len(sent.texts[-1]) if sent.texts else 0
            if self._num_bytes > self._max_bytes:
                sent.unfit = f"over {self._max_bytes} bytes of it were sent"
                sent.texts, sent.token_ids = [], []
        self._raw.clear()


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()


class _Choice(Struct, frozen=True):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Usage(Struct, frozen=True):
    completion_tokens: int = 0


class _Event(Struct, frozen=True):
    id: str | None = None
    created: int | None = None
    model: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


def event_data(events: bytes) -> Iterator[bytes]:
    """Return the data of each whole event that has some, without ``[DONE]``."""
    for event in events.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[len(_DATA) :].strip() for line in event.split(b"\n") if line[:5] == _DATA]
        data = b"\n".join(lines)
        if data and data != b"[DONE]":
            yield data


def _decode(data: bytes) -> _Event | str:
    """Return an event, or what is wrong with it."""
    try:
        return _decode_event(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"its events are of an unknown form: {str(error)[:200]}"


def _take(sent: Sent, event: _Event | str) -> None:
    if isinstance(event, str):
        sent.unfit = event
        return
    if sent.id is None:
        sent.id, sent.created, sent.model = event.id, event.created, event.model
    sent.prompt_ids = event.prompt_token_ids or sent.prompt_ids
    if event.usage is not None:
        sent.billed_tokens = event.usage.completion_tokens
    for choice in event.choices:
        sent.unfit = sent.unfit or _unfit(choice)
        delta = choice.delta
        text = (choice.text if delta is None else delta.content) or ""
        sent.prompt_ids = choice.prompt_token_ids or sent.prompt_ids
        sent.token_ids += choice.token_ids or ()
        sent.has_all_ids = sent.has_all_ids and (not text or bool(choice.token_ids))
        if text:
            sent.texts.append(text)
            sent.num_events += 1


def _unfit(choice: _Choice) -> str:
    delta = choice.delta
    if choice.index:
        return "it has several choices"
    if choice.finish_reason is not None:
        return "its end was sent already"
    if delta is None:
        return ""
    if delta.reasoning_content or delta.reasoning or delta.refusal or delta.audio:
        return "it is more than a text"
    calls = (bytes(delta.tool_calls), bytes(delta.function_call))
    return "it calls tools" if any(call not in (b"", b"null", b"[]") for call in calls) else ""
