"""A real server for tests and benchmarks: ``headrace serve`` in processes of its own.

::

    with running_server("simulated", "--port", "0") as server:
        urlopen(f"{server.url}/health")

It listens on a free port of this machine and is gone, with all its children, at the end.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.clock import MonotonicClock
from headrace.monitoring.shapes import JournalEntry

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Mapping

    from headrace.types import Seconds

_POLL_SECONDS = 0.02
_URL = re.compile(r"^  url +(http://\S+)/v1$", re.MULTILINE)


class ServerProcess:
    """A ``headrace serve`` that was started. ``url`` has no path."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self._process = process
        self._directory = directory
        self.url = ""

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def output(self) -> str:
        """What it printed on standard output."""
        return (self._directory / "stdout").read_text()

    @property
    def errors(self) -> str:
        """What it and its children printed on standard error."""
        return (self._directory / "stderr").read_text()

    def children(self) -> dict[str, int]:
        """Pids of its children by sub-command; further engines are ``engine1``, ``engine2``.."""
        found: dict[str, int] = {}
        for pid in children_of(self.pid):
            name = command_of(pid)
            if name:
                number = sum(1 for other in found if other.startswith(name))
                found[f"{name}{number or ''}"] = pid
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self._process.send_signal(number)

    def wait(self, timeout: Seconds = 30.0) -> int:
        """Wait for its end; return the exit code."""
        return self._process.wait(timeout)

    def wait_until_ready(self, timeout: Seconds = 60.0) -> None:
        """Wait until it says that it is ready, and where. Raises RuntimeError if it ends first."""

        def is_ready() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.errors}")
            return "ready in" in self.output

        wait_until(is_ready, timeout)
        match = _URL.search(self.output)
        assert match is not None, self.output
        self.url = match[1]

    def stop(self) -> None:
        """End it, gently at first."""
        with suppress(ProcessLookupError):
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.terminate()  # the second signal kills its children
                self._process.wait(20)


def wait_until(condition: Callable[[], bool], timeout: Seconds = 20.0) -> None:
    """Poll until a condition of other processes holds; raise TimeoutError."""
    clock, pause = MonotonicClock(), threading.Event()
    deadline = clock.now() + timeout
    while not condition():
        if clock.now() > deadline:
            raise TimeoutError(f"not within {timeout:g} s")
        pause.wait(_POLL_SECONDS)


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children (Linux)."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in children.read_text().split()]
    return found


def command_of(pid: int) -> str:
    """Return a process's sub-command of headrace (less ``child-``), empty if it is no more."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    for name, argument in pairwise(words):
        if name == b"headrace":
            return argument.decode().removeprefix("child-")
    return ""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def pss_bytes(pid: int) -> int:
    """Return a process's proportional share of memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"no Pss of process {pid}")


def read_journal(path: Path) -> list[JournalEntry]:
    """Return the decisions in a server's journal file, in order; none before the first."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=JournalEntry) for line in lines]


@contextmanager
def started_server(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    console: bool = False,
    command: str = "serve",
) -> Iterator[ServerProcess]:
    """Start ``headrace serve`` (or another ``command``); it may not be ready yet, or fail to."""
    if not console:
        arguments = (*arguments, "--no-console")
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as name:
        directory = Path(name)
        with (
            (directory / "stdout").open("wb") as stdout,
            (directory / "stderr").open("wb") as stderr,
        ):
            process = subprocess.Popen(
                (sys.executable, "-P", "-m", "headrace", command, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env=environment,
            )
        server = ServerProcess(process, directory)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def running_server(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    console: bool = False,
    command: str = "serve",
) -> Iterator[ServerProcess]:
    """Start ``headrace serve`` on a free port, unless one is named, and wait until it is ready."""
    port = () if "--port" in arguments else ("--port", "0")
    with started_server(
        *arguments, *port, environment=environment, console=console, command=command
    ) as server:
        server.wait_until_ready()
        yield server
