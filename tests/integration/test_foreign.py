"""``headrace gateway`` before ``headrace fake-replica``, all in processes of their own."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from headrace.testing.openai_replica import expected_text
from headrace.testing.server_process import running_server, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.testing.server_process import ServerProcess

TIMEOUT = 20
HEADRACE = (sys.executable, "-P", "-m", "headrace")


@dataclass
class Fake:
    """A scripted replica's process."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def fake(environment: Mapping[str, str], *flags: str) -> Iterator[Fake]:
    process = subprocess.Popen(
        (*HEADRACE, "fake-replica", *flags), stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match is not None
        yield Fake(process, match[0])
    finally:
        process.kill()
        process.wait(TIMEOUT)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def gateway(
    environment: Mapping[str, str], *scripts: tuple[str, ...], flags: tuple[str, ...] = ()
) -> Iterator[tuple[ServerProcess, list[Fake]]]:
    with ExitStack() as stack:
        fakes = [stack.enter_context(fake(environment, *script)) for script in scripts]
        named = [word for each in fakes for word in ("--replica", each.url)]
        server = stack.enter_context(
            running_server(*named, *flags, environment=environment, command="gateway")
        )
        wait_until(lambda: len(ready(server)) == len(fakes))
        yield server, fakes


def ready(server: ServerProcess) -> list[str]:
    status, body = ask(server.port, "GET", "/ready")
    assert status in (200, 503)
    return [each["replica"] for each in json.loads(body)["replicas"] if each["ok"]]


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def chat(text: str, **fields: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def stream(port: int, text: str, num_tokens: int) -> bytes:
    body = chat(text, stream=True, max_tokens=num_tokens)
    status, answer = ask(port, "POST", "/v1/chat/completions", body)
    assert status == 200
    return answer


def text_of(answer: bytes) -> str:
    *events, done, _ = answer.split(b"\n\n")
    assert done == b"data: [DONE]"
    deltas = [json.loads(e.removeprefix(b"data: "))["choices"][0]["delta"] for e in events]
    return "".join(delta.get("content", "") for delta in deltas)


def test_answers_are_those_of_the_replicas_to_the_byte(environment: Mapping[str, str]) -> None:
    with gateway(environment, (), ()) as (server, fakes):
        for text in ("one", "two", "three"):
            assert stream(server.port, text, 20) == stream(fakes[0].port, text, 20)
            through = ask(server.port, "POST", "/v1/chat/completions", chat(text))
            assert through == ask(fakes[0].port, "POST", "/v1/chat/completions", chat(text))


def test_a_killed_replica_costs_only_the_streams_it_had(environment: Mapping[str, str]) -> None:
    scripts = (("--itl-ms", "2", "--die-after-tokens", "12"), ("--itl-ms", "2"))
    with gateway(environment, *scripts, flags=("--policy", "round_robin")) as (server, fakes):
        answers = [stream(server.port, str(number), 30) for number in range(8)]
        broken = [answer for answer in answers if b'"worker_lost"' in answer]
        assert len(broken) == 1
        assert b'"finish_reason":"' not in broken[0]
        assert broken[0].endswith(b"data: [DONE]\n\n")
        for number, answer in enumerate(answers):
            if answer not in broken:
                messages = [{"role": "user", "content": str(number)}]
                assert text_of(answer) == expected_text(messages, 30)
        assert fakes[0].process.wait(TIMEOUT) != 0
        wait_until(lambda: ready(server) == [f"127.0.0.1:{fakes[1].port}"])


def test_a_stopped_replica_is_noticed_and_taken_back(environment: Mapping[str, str]) -> None:
    quick = {
        **environment,
        "HEADRACE_FOREIGN_POLL_PERIOD": "0.05",
        "HEADRACE_FOREIGN_POLL_TIMEOUT": "0.2",
    }
    with gateway(quick, (), ()) as (server, fakes):
        fakes[0].process.send_signal(signal.SIGSTOP)
        wait_until(lambda: len(ready(server)) == 1)
        for number in range(4):
            assert text_of(stream(server.port, str(number), 5))
        fakes[0].process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(ready(server)) == 2)


def test_failing_replicas_are_unseen(environment: Mapping[str, str]) -> None:
    scripts = (("--fail-first", "3"), ("--bad-json-at", "0"), ())
    flags = ("--policy", "round_robin")
    generous = {**environment, "HEADRACE_GATEWAY_RETRY_SHARE": "1"}
    with gateway(generous, *scripts, flags=flags) as (server, _):
        for number in range(12):
            answer = stream(server.port, str(number), 8)
            messages = [{"role": "user", "content": str(number)}]
            assert text_of(answer) == expected_text(messages, 8)


def test_the_gateway_drains_and_ends_well(environment: Mapping[str, str]) -> None:
    with gateway(environment, ("--itl-ms", "10")) as (server, _):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
        body = json.dumps(chat("hi", stream=True, max_tokens=50))
        connection.request(
            "POST", "/v1/chat/completions", body, {"content-type": "application/json"}
        )
        response = connection.getresponse()
        response.readline()
        server.send(signal.SIGTERM)
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert server.wait() == 0
        connection.close()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "add --replica http://HOST:PORT"),
        (("--replica", "localhost:8000"), "write it like http://127.0.0.1:8001"),
        (("--replica", "http://a:1", "--replica", "http://a:1/v1"), "name each once"),
        (("--replica", "http://a:1", "--policy", "predicted"), "predicted_ttft"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    environment: Mapping[str, str], flags: tuple[str, ...], words: str
) -> None:
    ended = subprocess.run(
        (*HEADRACE, "gateway", *flags),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=environment,
    )
    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_unreachable_replicas_do_not_keep_it_from_starting(
    environment: Mapping[str, str],
) -> None:
    flags = ("--replica", "http://127.0.0.1:9")
    with running_server(*flags, environment=environment, command="gateway") as server:
        wait_until(lambda: b"cannot connect" in ask(server.port, "GET", "/ready")[1])
        assert ask(server.port, "GET", "/ready")[0] == 503
        status, answer = ask(server.port, "POST", "/v1/chat/completions", chat("hi"))
        assert status == 503
        assert json.loads(answer)["error"]["code"] == "not_ready"
        assert "cannot connect" in server.errors


def test_headrace_itself_may_be_a_replica(
    server: ServerProcess, environment: Mapping[str, str]
) -> None:
    flags = ("--replica", f"http://127.0.0.1:{server.port}")
    body = {"prompt": "a", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with running_server(*flags, environment=environment, command="gateway") as before:
        wait_until(lambda: len(ready(before)) == 1)
        texts = [
            json.loads(ask(each.port, "POST", "/v1/completions", body)[1])["choices"]
            for each in (before, server)
        ]
        assert texts[0] == texts[1]
        model = json.loads(ask(server.port, "GET", "/v1/models")[1])["data"][0]["id"]
        assert model in ask(before.port, "GET", "/v1/models")[1].decode()
