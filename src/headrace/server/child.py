"""What the supervisor and its children say to each other.

The supervisor writes a child's settings as one JSON line to its standard input and then holds
that pipe open: when it closes, the supervisor is gone, however it died, and the child ends. The
child writes reports, one JSON line each, to what was its standard output; anything else that is
printed in the child goes to standard error.

Both sides are here. The supervisor's side is light: no numpy, no model code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

from headrace.errors import StartError, UsageError
from headrace.server.process import MAX_LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """What the child is busy with before it is ready, in a few words."""

    text: str


class Ready(msgspec.Struct, frozen=True, tag="ready", kw_only=True):
    """The child does its work now. ``kv_tokens`` is 0 for a gateway."""

    model: str
    kv_tokens: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The child ends; the message is for the user."""

    message: str
    exit_code: int


Report: TypeAlias = Progress | Ready | Failed
_encode = msgspec.json.Encoder().encode
decode_report = msgspec.json.Decoder(Report).decode


class Parent:
    """The supervisor, as a child sees it."""

    def __init__(self, *, settings_fd: int, reports_fd: int) -> None:
        self._settings_fd = settings_fd
        self._reports_fd = reports_fd

    @classmethod
    def on_standard_streams(cls) -> Parent:
        """Take standard input and output over, so that no library can write among reports."""
        reports_fd = os.dup(1)
        os.dup2(2, 1)
        return cls(settings_fd=0, reports_fd=reports_fd)

    def read_settings(self) -> bytes:
        """Return the line with the settings; blocks until it is there."""
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = os.read(self._settings_fd, 1)  # not one more: what follows is the end
            if not byte or len(line) > MAX_LINE_BYTES:
                raise UsageError("this command is started by `headrace serve`, not by hand")
            line += byte
        return bytes(line)

    def report(self, report: Report) -> None:
        """Tell the supervisor. If it is gone, ``watch`` says so."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._reports_fd, _encode(report) + b"\n")

    @contextlib.contextmanager
    def watch(self, gone: Callable[[], None]) -> Iterator[None]:
        """Call ``gone`` on the loop when the supervisor has ended."""
        loop = asyncio.get_running_loop()

        def readable() -> None:
            if not os.read(self._settings_fd, 4096):
                loop.remove_reader(self._settings_fd)
                gone()

        loop.add_reader(self._settings_fd, readable)
        try:
            yield
        finally:
            loop.remove_reader(self._settings_fd)


SettingsT = TypeVar("SettingsT")
ChildMain: TypeAlias = "Callable[[SettingsT, Parent, asyncio.Event], Coroutine[None, None, int]]"
"""The work of a child process: runs until the event is set; returns the exit code."""


def run_child(settings_type: type[SettingsT], main: ChildMain[SettingsT]) -> int:
    """Run a child process to its end; return the exit code.

    The event is set by SIGTERM and by the supervisor's end. A StartError is reported to the
    supervisor, which prints it.
    """
    parent = Parent.on_standard_streams()
    try:
        settings = msgspec.json.decode(parent.read_settings(), type=settings_type)
        return run_on_loop(_supervised(main, settings, parent))
    except StartError as error:
        parent.report(Failed(str(error), error.exit_code))
        return error.exit_code
    except msgspec.MsgspecError as error:
        parent.report(Failed(f"settings of a child process: {error}", 2))
        return 2


async def _supervised(main: ChildMain[SettingsT], settings: SettingsT, parent: Parent) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    with parent.watch(stop.set):
        return await main(settings, parent, stop)


def run_on_loop(main: Coroutine[None, None, int]) -> int:
    """Run a coroutine on uvloop where it is installed, else on asyncio's loop."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def child_command(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line of an internal sub-command.

    ``-P``: a file in the working directory must not shadow a module.
    """
    return (sys.executable, "-P", "-m", "headrace", name, *arguments)
