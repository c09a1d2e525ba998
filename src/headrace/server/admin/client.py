"""A client of the admin plane for commands: finds the socket, asks, and says what went wrong."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from headrace.errors import StartError, Unreachable, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.types import Seconds

TIMEOUT_SECONDS: Seconds = 10.0
"""Longer than the server waits for its gateway."""

_CONNECT_SECONDS: Seconds = 1.0

AnswerT = TypeVar("AnswerT")


class _ErrorFields(msgspec.Struct, frozen=True):
    message: str


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorFields


def find_socket(base: Path) -> Path:
    """Return the admin socket of the server that runs here.

    Raises Unreachable if none does, UsageError if several do. ``base`` is the directory in which
    servers make their own.
    """
    live = [path for path in sorted(base.glob("headrace-*/admin.sock")) if _answers(path)]
    if not live:
        raise unreachable(str(base / "headrace-*" / "admin.sock"))
    if len(live) > 1:
        names = ", ".join(str(path) for path in live)
        raise UsageError(f"{len(live)} servers run here; choose one with --admin PATH: {names}")
    return live[0]


def unreachable(place: str) -> Unreachable:
    """Return the error for a server that is not there."""
    return Unreachable(
        f"no headrace server is running here (looked in {place}); "
        f"start one with `headrace serve`, or name its socket with --admin PATH"
    )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Asks the server whose admin socket is at ``path``, a connection for each question."""

    path: Path

    def get(self, target: str, answer: type[AnswerT]) -> AnswerT:
        """Return the answer to a question. Raises StartError with the server's words."""
        return _decoded(self._body("GET", target, None), answer)

    def post(self, target: str, order: msgspec.Struct, answer: type[AnswerT]) -> AnswerT:
        """Return the answer to an order. Raises StartError with the server's words."""
        return _decoded(self._body("POST", target, msgspec.json.encode(order)), answer)

    def text(self, target: str) -> str:
        """Return an answer that is not JSON."""
        return self._body("GET", target, None).decode()

    def _body(self, method: str, target: str, body: bytes | None) -> bytes:
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, target, body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (ConnectionRefusedError, FileNotFoundError):
            raise unreachable(str(self.path)) from None
        except TimeoutError:
            raise Unreachable(
                f"the server at {self.path} did not answer within {TIMEOUT_SECONDS:g} s"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the server at {self.path}: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise StartError(_message(content, response.status))
        return content


class _UnixConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the path, whatever the host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def _decoded(content: bytes, answer: type[AnswerT]) -> AnswerT:
    try:
        return msgspec.json.decode(content, type=answer)
    except msgspec.MsgspecError as error:
        raise StartError(f"the server answered what this command cannot read: {error}") from None


def _message(content: bytes, status: int) -> str:
    try:
        return msgspec.json.decode(content, type=_ErrorBody).error.message
    except msgspec.MsgspecError:
        return f"the server answered with status {status}"
