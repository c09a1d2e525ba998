"""Bodies to structs, and every way in which that fails to a 400 that names the field."""

from __future__ import annotations

import re
from typing import Generic, TypeVar

import msgspec

from headrace.errors import InvalidRequest
from headrace.server.gateway.api.refusals import check_refused

T = TypeVar("T", bound=msgspec.Struct)

MAX_QUOTED_CHARS = 200
_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")
_MALFORMED_AT = re.compile(r"\(byte (\d+)\)$")
_OPEN_FIELD = re.compile(r'"(\w{1,64})"\s*:\s*(?:[\[{][^\[\]{}]*)?-?$')
_LOOK_BACK_BYTES = 512

_all_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class BodyDecoder(Generic[T]):
    """Decodes JSON bodies into one struct type."""

    def __init__(self, struct: type[T]) -> None:
        self._decode = msgspec.json.Decoder(struct).decode
        self._carried_out = frozenset(field.name for field in msgspec.structs.fields(struct))

    def __call__(self, body: bytes | bytearray) -> T:
        """Return the struct. Raises InvalidRequest, with ``param`` where a field is at fault."""
        try:
            body.decode()  # msgspec does not look into strings of fields that it skips
            check_refused(_all_fields(body), self._carried_out)
            return self._decode(body)
        except RecursionError:
            raise InvalidRequest("the JSON is nested too deeply") from None
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}") from None
        except msgspec.ValidationError as error:
            raise _wrong_value(str(error)) from None
        except msgspec.DecodeError as error:
            raise _malformed(str(error), body) from None


def _wrong_value(text: str) -> InvalidRequest:
    place = _PLACE.search(text)
    if place is not None:
        param = place[1].removesuffix("[...]")
        return InvalidRequest(_shorten(f"{param}: {text[: place.start()]}"), param=param)
    missing = _MISSING.search(text)
    return InvalidRequest(_shorten(text), param=missing[1] if missing else None)


def _malformed(text: str, body: bytes | bytearray) -> InvalidRequest:
    """Name the field whose value is no JSON, such as NaN: the last one opened before it."""
    param = None
    at = _MALFORMED_AT.search(text)
    if at is not None:
        end = int(at[1])
        before = body[max(0, end - _LOOK_BACK_BYTES) : end].decode(errors="replace")
        field = _OPEN_FIELD.search(before)
        param = field[1] if field else None
    return InvalidRequest(_shorten(f"malformed JSON: {text}"), param=param)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_QUOTED_CHARS else text[: MAX_QUOTED_CHARS - 1] + "\u2026"
