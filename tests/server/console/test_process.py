"""The console as a process of its own, started as the supervisor starts it."""

from __future__ import annotations

import http.client
import socket
import subprocess
from typing import TYPE_CHECKING

import msgspec

from headrace.server.child import Ready, child_command, decode_report
from headrace.server.settings import ConsoleProcess, LogConfig

if TYPE_CHECKING:
    from pathlib import Path


def test_the_process_reports_ready_serves_the_page_and_ends_with_its_supervisor(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        settings = ConsoleProcess(
            listening_fd=listening.fileno(),
            token="t",
            admin=str(tmp_path / "admin.sock"),
            server_url="http://127.0.0.1:1",
            log=LogConfig(),
        )
        process = subprocess.Popen(
            child_command("child-console"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(listening.fileno(),),
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        process.stdin.flush()
        assert isinstance(decode_report(process.stdout.readline()), Ready)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert b"<title>headrace</title>" in connection.getresponse().read()
        connection.request("GET", "/api/state", headers={"Authorization": "Bearer t"})
        assert connection.getresponse().status == 503  # nobody is behind it
        connection.close()
        process.stdin.close()
        assert process.wait(10) == 0
