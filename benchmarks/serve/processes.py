"""A server under measurement: its processes, their memory, and its sure end (Linux only)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POLL_S = 0.05
STOP_GRACE_S = 20.0
KILL_GRACE_S = 10.0
MB = 1e6
PARENT, START_TIME = 4, 22  # fields of /proc/PID/stat


class ServerFailed(Exception):
    """A server ended, or did not become ready; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """How to start a server. ``ready_path`` answers 200 once it can serve."""

    name: str
    command: Sequence[str]
    port: int
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)  # added to ours
    start_timeout_s: float = 120.0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a process tree holds. PSS shares common pages out; RSS counts them in each process."""

    processes: int
    fds: int
    rss_mb: float
    pss_mb: float


class Server:
    """A running server, leader of a process group of its own."""

    def __init__(self, spec: ServerSpec, log: Path) -> None:
        self.spec = spec
        self.ready_s = 0.0
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until ready. Raises ServerFailed, with nothing left running."""
        if port_is_taken(self.spec):
            raise ServerFailed(f"{self.spec.name}: port {self.spec.port} is in use")
        began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.spec.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.spec.environment},
                start_new_session=True,
            )
        try:
            self._wait_ready(began + self.spec.start_timeout_s)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - began

    def footprint(self) -> Footprint:
        """Measure the tree now."""
        return measure(tree_of(self._pid()))

    def tree(self) -> list[int]:
        """Return its processes that live, the one that was started first."""
        return tree_of(self._pid())

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """Stop its processes' clocks, so that it costs others no processor time."""
        for pid in tree_of(self._pid()):
            _signal(pid, signal.SIGSTOP)

    def kill(self) -> None:
        """End it at once, without a word."""
        for pid in tree_of(self._pid()):
            _signal(pid, signal.SIGKILL)

    def resume(self) -> None:
        for pid in tree_of(self._pid()):
            _signal(pid, signal.SIGCONT)

    def stop(self) -> None:
        """End every process of the tree: politely, then surely."""
        process = self._process
        if process is None:
            return
        self._process = None
        births = {pid: _stat_field(pid, START_TIME) for pid in tree_of(process.pid)}
        for pid in births:
            _signal(pid, signal.SIGCONT)
        _signal(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid, birth in births.items():
            if birth is not None and _stat_field(pid, START_TIME) == birth:
                _signal(pid, signal.SIGKILL)  # one that had left the group
        process.wait(KILL_GRACE_S)

    def _pid(self) -> int:
        if self._process is None:
            raise ServerFailed(f"{self.spec.name} is not running")
        return self._process.pid

    def _wait_ready(self, deadline: float) -> None:
        url = self.spec.base_url + self.spec.ready_path
        while time.monotonic() < deadline:
            if not self.is_alive():
                raise ServerFailed(f"{self.spec.name} ended at its start:\n{self._log_end()}")
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(POLL_S)
        limit = self.spec.start_timeout_s
        raise ServerFailed(f"{self.spec.name} not ready in {limit:g} s:\n{self._log_end()}")

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


def end_on_sigterm() -> None:
    """Let SIGTERM end this process by SystemExit, so that its servers are stopped too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def without_paths(words: Sequence[str]) -> list[str]:
    """Shorten paths to their last part: where things lie on this machine is of no interest."""
    absolute = re.compile(r"""(?<![^\s:='"])/[^\s:='"]*/""")
    return [absolute.sub("", word) for word in words]


def port_is_taken(spec: ServerSpec) -> bool:
    """Whether something answers there already."""
    try:
        urllib.request.urlopen(spec.base_url + spec.ready_path, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def tree_of(root: int) -> list[int]:
    """Return ``root`` and all its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        parent = _stat_field(int(entry.name), PARENT)
        if parent is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def measure(pids: Sequence[int]) -> Footprint:
    """Add up what the processes hold; one that ended meanwhile counts nothing."""
    processes = fds = 0
    rss = pss = 0.0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            fds += len(os.listdir(f"/proc/{pid}/fd"))
            sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
            rss += int(sizes["Rss"]) * 1024
            pss += int(sizes["Pss"]) * 1024
            processes += 1
    return Footprint(processes=processes, fds=fds, rss_mb=rss / MB, pss_mb=pss / MB)


def _stat_field(pid: int, field_number: int) -> int | None:
    """Return a number of /proc/PID/stat, counted as proc(5) does; None if the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[field_number - 3])


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
