"""A child process on the event loop, by its pid file descriptor (Linux).

asyncio's own subprocesses end only when their pipes do, and a grandchild that inherited a pipe can
keep it open for ever; here the end of the process is the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """How to start one child. ``settings`` go to its standard input: they may hold secrets."""

    name: str
    command: tuple[str, ...]
    settings: bytes
    inherited_fds: tuple[int, ...] = ()


class ChildProcess:
    """Runs from its construction on, in a session of its own: Ctrl-C does not reach it.

    Its standard input stays open until it has ended; ``take_line`` gets each line that it writes
    to its standard output.
    """

    def __init__(self, spec: ChildSpec, take_line: Callable[[bytes], None]) -> None:
        self._take_line = take_line
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(
            spec.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=spec.inherited_fds,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._loop.add_reader(self._output, self._read)
        with contextlib.suppress(BrokenPipeError):  # it is dead already: `ended` tells
            os.write(self._process.stdin.fileno(), spec.settings + b"\n")

    @property
    def pid(self) -> int:
        """The process's."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def ended(self) -> int:
        """Wait for the end; kill what it left behind; return its exit code (negative: a signal).

        Cancelled, it kills the process. To be called once.
        """
        descriptor = os.pidfd_open(self._process.pid)
        exited = asyncio.Event()
        self._loop.add_reader(descriptor, exited.set)
        try:
            await exited.wait()
        finally:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
            self.signal(signal.SIGKILL)
            code = self._process.wait()
            self._read()  # its last words
            self._loop.remove_reader(self._output)
            self._close_pipes()
        return code

    def _read(self) -> None:
        try:
            while data := os.read(self._output, _READ_BYTES):
                *lines, self._rest = (self._rest + data).split(b"\n")
                if len(self._rest) > MAX_LINE_BYTES:
                    self._rest = b""  # no report of ours
                for line in lines:
                    self._take_line(line)
        except BlockingIOError:
            return
        self._loop.remove_reader(self._output)  # the end of its output

    def _close_pipes(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
