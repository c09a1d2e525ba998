"""A client that shows what really came: the standard library's, with streams as events."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.testing.server_process import ServerProcess

Json = dict[str, Any]
TIMEOUT = 30


def connect(server: ServerProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)


def get(server: ServerProcess, path: str, **headers: str) -> tuple[int, str]:
    connection = connect(server)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def complete(server: ServerProcess, prompt: str = "a", **fields: object) -> tuple[int, Json]:
    """POST a completion that is not streamed."""
    connection = connect(server)
    send(connection, {"prompt": prompt, "ignore_eos": True, **fields})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def chat(server: ServerProcess, messages: list[Json], **fields: object) -> tuple[int, Json]:
    """POST a chat that is not streamed."""
    connection = connect(server)
    body = json.dumps({"messages": messages, **fields})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def send(connection: http.client.HTTPConnection, body: Json) -> None:
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )


@contextmanager
def stream(
    server: ServerProcess, prompt: str = "a", **fields: object
) -> Iterator[Iterator[Json | None]]:
    """Stream a completion: its events, None for ``[DONE]``. Leaving it hangs up."""
    connection = connect(server)
    try:
        send(connection, {"prompt": prompt, "ignore_eos": True, "stream": True, **fields})
        yield events(connection.getresponse())
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[Json | None]:
    assert response.status == 200, response.read()
    while line := response.readline():
        if line.startswith(b"data: "):
            data = line.removeprefix(b"data: ").strip()
            yield None if data == b"[DONE]" else json.loads(data)


def metric(server: ServerProcess, name: str, **labels: str) -> float:
    """Return the sum of a metric's series that have these labels."""
    total = 0.0
    for line in get(server, "/metrics")[1].splitlines():
        wanted = all(f'{label}="{value}"' in line for label, value in labels.items())
        if wanted and line.startswith((f"{name} ", f"{name}{{")):
            total += float(line.rpartition(" ")[2])
    return total


def admin_socket(server: ServerProcess, environment: Mapping[str, str]) -> Path:
    """Return the admin socket of a server; others may run beside it."""
    for path in Path(environment["TMPDIR"]).glob("headrace-*/admin.sock"):
        connection = http.client.HTTPConnection("a", timeout=TIMEOUT)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(path))
            connection.request("GET", "/state")
            if server.url.encode() in connection.getresponse().read():
                return path
        except ConnectionError:
            continue
        finally:
            connection.close()
    raise AssertionError("no admin socket of this server")
