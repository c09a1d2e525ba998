"""What clients see of a server that is left as it was found."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from http_client import complete, get, metric, stream

from headrace.testing.server_process import pss_bytes, wait_until

if TYPE_CHECKING:
    from headrace.testing.server_process import ServerProcess

pytestmark = pytest.mark.xdist_group("server")

MODEL = "simulated"


def test_the_server_says_what_it_serves_and_how_to_try_it(server: ServerProcess):
    lines = server.output.splitlines()
    assert lines[0].endswith("serves simulated")
    assert f"url        {server.url}/v1" in server.output
    assert "replicas   1, with a KV cache of 32,768 tokens each" in server.output
    assert "auth       none, this machine only" in server.output
    assert lines[-1].startswith(f"try: curl {server.url}/v1/chat/completions")
    assert "/" not in server.errors.replace("engine r0", "")  # no path, no traceback


def test_a_stream_is_one_event_a_token_then_the_reason_then_done(server: ServerProcess):
    with stream(server, max_tokens=8, stream_options={"include_usage": True}) as events:
        received = list(events)
    assert received[-1] is None
    chunks = [event for event in received if event]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == (
        "length"
    )
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_a_stream_and_an_answer_in_one_piece_have_the_same_text(server: ServerProcess):
    fields = {"max_tokens": 40, "temperature": 0, "prompt": "the same"}
    status, answer = complete(server, **fields)
    with stream(server, **fields) as events:
        text = "".join(e["choices"][0]["text"] for e in events if e)
    assert status == 200
    assert answer["choices"][0]["text"] == text
    assert answer["usage"]["completion_tokens"] == 40


def test_an_answer_can_be_held_to_a_grammar(server: ServerProcess):
    for seed in range(3):
        status, answer = complete(server, guided_regex="(yes|no){3}", max_tokens=20, seed=seed)
        assert status == 200
        assert len(re.findall("yes|no", answer["choices"][0]["text"])) == 3
        assert answer["choices"][0]["finish_reason"] == "stop"
    status, answer = complete(server, guided_regex="(yes|no", max_tokens=20)
    assert (status, answer["error"]["param"]) == (400, "guided_regex")


def test_a_second_request_finds_the_prefix_of_the_first(server: ServerProcess):
    prompt = "the quick brown fox " * 12
    complete(server, prompt, max_tokens=1)
    _, answer = complete(server, prompt, max_tokens=1)
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert 0.7 * usage["prompt_tokens"] < cached < usage["prompt_tokens"]


def test_health_live_and_ready_answer(server: ServerProcess):
    for path in ("/live", "/ready", "/health"):
        assert get(server, path)[0] == 200


def test_a_client_that_hangs_up_is_aborted_at_once_and_its_blocks_are_freed(
    server: ServerProcess,
):
    before = output_tokens(server)
    with stream(server, "hang up", max_tokens=900) as events:
        for _ in range(5):
            next(events)
    wait_until(lambda: output_tokens(server) >= before + 5 and is_idle(server))
    assert output_tokens(server) < before + 300  # far from 900: a step takes 10 ms


def test_a_client_that_hangs_up_before_its_first_token_is_aborted_too(server: ServerProcess):
    before = output_tokens(server)
    with stream(server, "x" * 600, max_tokens=900):
        pass
    complete(server, max_tokens=1)  # so that there is news of the engine
    wait_until(lambda: output_tokens(server) > before and is_idle(server))
    assert output_tokens(server) < before + 300


def output_tokens(server: ServerProcess) -> float:
    return metric(server, "headrace_engine_output_tokens_total")


def is_idle(server: ServerProcess) -> bool:
    """Nothing runs, no block is in use: as the engine reports once its work is done."""
    return (
        metric(server, "headrace_engine_running") == 0
        and metric(server, "headrace_kv_blocks", state="used") == 0
        and metric(server, "headrace_generations_running") == 0
    )


def test_descriptors_and_children_are_as_before_after_many_clients_that_hang_up(
    server: ServerProcess,
):
    complete(server, max_tokens=1)
    children = server.children()
    before = {name: descriptors(pid) for name, pid in children.items()}
    for i in range(15):
        with stream(server, f"client {i}", max_tokens=50) as events:
            if i % 3:
                next(events)
    wait_until(lambda: is_idle(server))
    wait_until(lambda: all(descriptors(children[name]) <= before[name] for name in children))
    assert server.children() == children


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_the_supervisor_is_small_and_the_gateway_has_no_engine_in_it(server: ServerProcess):
    children = server.children()
    assert sorted(children) == ["engine", "gateway"]
    assert pss_bytes(server.pid) < 25 << 20
    assert pss_bytes(children["gateway"]) < 90 << 20
    assert "openvino" not in Path(f"/proc/{children['gateway']}/maps").read_text()
    for library in ("openvino", "numpy", "tokenizers"):
        assert library not in Path(f"/proc/{server.pid}/maps").read_text()


def test_secrets_and_settings_are_not_on_any_command_line(server: ServerProcess):
    for pid in server.children().values():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert words[1:4] == [b"-P", b"-m", b"headrace"]
        assert len([word for word in words if word]) == 5


def test_the_sockets_of_engines_are_private_to_the_user(server: ServerProcess):
    listening = Path("/proc/net/unix").read_text().splitlines()
    paths = {Path(line.split()[-1]) for line in listening if line.endswith("/r0.sock")}
    own = [path for path in paths if path.exists()]
    assert own
    for path in own:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_openai_client_works_sync_and_streaming(server: ServerProcess):
    from openai import OpenAI

    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        messages = [{"role": "user", "content": "Name three rivers."}]
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=12, extra_body={"ignore_eos": True}
        )
        assert answer.usage.completion_tokens == 12
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=messages,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
        )
        assert chunks[-1].usage.completion_tokens == 12
        assert client.completions.create(model=MODEL, prompt="a", max_tokens=3).choices


def test_the_openai_client_works_async(server: ServerProcess):
    from openai import AsyncOpenAI

    async def ask() -> list[int]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(
                    client.completions.create(
                        model=MODEL, prompt=f"{i}", max_tokens=9, extra_body={"ignore_eos": True}
                    )
                    for i in range(8)
                )
            )
        return [answer.usage.completion_tokens for answer in answers]

    assert asyncio.run(ask()) == [9] * 8


def test_bad_requests_are_told_what_is_wrong_and_harm_nobody(server: ServerProcess):
    with stream(server, "bystander", max_tokens=60) as events:
        next(events)
        for fields, code in (
            ({"max_tokens": 0}, 400),
            ({"temperature": 99}, 400),
            ({"model": "gpt-9"}, 404),
            ({"prompt": "word " * 5000}, 400),
        ):
            status, answer = complete(server, **fields)
            assert status == code
            assert answer["error"]["message"]
        assert list(events)[-1] is None


def test_the_bench_command_measures_a_server(server: ServerProcess, tmp_path: Path):
    from headrace.cli.main import main

    report = tmp_path / "report.json"
    arguments = ("--concurrency", "4", "--requests", "12", "--output-len", "5", "--warmup", "0")
    url = ("--base-url", server.url, "--input-len", "20")
    assert main(["bench", *url, *arguments, "--json", str(report)]) == 0
    assert json.loads(report.read_text())
