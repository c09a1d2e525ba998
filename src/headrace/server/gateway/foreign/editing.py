"""Fields of a JSON object set in its text: whatever is not named stays as it was, to the byte.

Only requests under an alias, and streams that go on elsewhere, are edited; all others pass
unread. Every occurrence of a repeated field is set, whichever one the reader of it believes.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SPACE = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str)
_BYTES = "surrogateescape"  # of bytes that are no UTF-8: they go out as they came in


class _Member(NamedTuple):
    """A field, and where its value stands in the text."""

    name: str
    begin: int
    end: int


def set_fields(body: bytes | bytearray, fields: Mapping[str, bytes]) -> bytes:
    """Return ``body`` with top-level fields set to the JSON given; new ones come at the end.

    Raises InvalidRequest if it is no JSON object.
    """
    text = bytes(body).decode("utf-8", _BYTES)
    try:
        members = list(_members(text))
    except (ValueError, RecursionError, IndexError) as error:
        raise InvalidRequest(f"malformed JSON: {str(error)[:200]}") from None
    values = {name: value.decode("utf-8", _BYTES) for name, value in fields.items()}
    pieces, at = [], 0
    for member in members:
        if member.name in values:
            pieces += [text[at : member.begin], values[member.name]]
            at = member.end
    end = members[-1].end if members else text.index("{") + 1
    known = {member.name for member in members}
    new = [f"{json.dumps(name)}:{values[name]}" for name in values if name not in known]
    comma = "," if new and members else ""
    return "".join((*pieces, text[at:end], comma, ",".join(new), text[end:])).encode(
        "utf-8", _BYTES
    )


def append_item(array: bytes, item: bytes) -> bytes:
    """Return a JSON array with one more item; ``array`` is valid."""
    head = array.rstrip().removesuffix(b"]").rstrip()
    comma = b"" if head == b"[" else b","
    return head + comma + item + b"]"


def text_of(raw: bytes) -> str | None:
    """Return the text of a JSON string, None if it is something else."""
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _members(text: str) -> Iterator[_Member]:
    at = _skip(text, 0)
    if text[at] != "{":
        raise ValueError("it is no object")
    at = _skip(text, at + 1)
    while text[at] != "}":
        start = at
        name, at = _decoder.raw_decode(text, start)
        at = _skip(text, at)
        if text[start] != '"' or text[at] != ":":
            raise ValueError(f"no field at character {start}")
        begin = _skip(text, at + 1)
        _, end = _decoder.raw_decode(text, begin)
        yield _Member(name, begin, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
        elif text[at] != "}":
            raise ValueError(f"neither a comma nor the end at character {at}")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match is not None else at
