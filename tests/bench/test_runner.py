"""Whole runs: arrivals, errors, exit codes, reports."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_server import FakeServer, Seen, stream_tokens, write_json

from headrace.bench import command
from headrace.bench.config import BenchConfig, ClosedLoop, Goodput, OpenLoop, Target
from headrace.bench.environment import hide_secrets
from headrace.bench.report import Report, to_json, to_table
from headrace.bench.runner import RunFailed, run
from headrace.bench.schedule import arrival_times
from headrace.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run_against(
    respond: Callable,
    **settings: Any,  # noqa: ANN401
) -> tuple[Report, FakeServer]:
    async def scenario() -> tuple[Report, FakeServer]:
        async with FakeServer(respond) as server:
            fields = {
                name: settings.pop(name) for name in ("api_key", "headers") if name in settings
            }
            target = Target(base_url=server.url, **fields)
            return await run(BenchConfig(target=target, **settings)), server

    return asyncio.run(scenario())


def test_arrivals_are_seeded():
    def draw(seed: int) -> list[float]:
        rng = np.random.default_rng(seed)
        return arrival_times(OpenLoop(rate=5), count=2000, rng=rng)

    assert draw(1) == draw(1) != draw(2)
    assert draw(1) == sorted(draw(1))
    assert draw(1)[-1] == pytest.approx(2000 / 5, rel=0.1)


def test_constant_arrivals_are_evenly_spaced():
    rng = np.random.default_rng(0)
    assert arrival_times(OpenLoop(rate=4, constant=True), count=3, rng=rng) == [0, 0.25, 0.5]


def test_open_loop_arrivals_are_not_delayed_by_slow_replies():
    """All 20 arrive while the first is unanswered: the server replies only then."""
    everyone_is_there = asyncio.Event()
    waiting = 0

    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        nonlocal waiting
        waiting += 1
        if waiting == 20:
            everyone_is_there.set()
        await asyncio.wait_for(everyone_is_there.wait(), 10)
        await stream_tokens(seen, writer)

    report, _ = run_against(
        respond, arrivals=OpenLoop(rate=500), requests=20, output_tokens=2, warmup=0
    )
    assert report.summary.completed == 20


def test_a_closed_loop_keeps_to_its_concurrency():
    now = most = 0

    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await stream_tokens(seen, writer, delay=0.001)
        now -= 1

    report, server = run_against(
        respond, arrivals=ClosedLoop(concurrency=3), requests=12, output_tokens=3, warmup=1
    )
    assert most == 3
    assert report.summary.completed == 12
    assert report.summary.output_tokens == 36
    assert report.summary.tokens_counted_by == "usage"
    assert len(server.seen) == 1 + 1 + 12  # models, warm-up, load


def test_arrivals_beyond_the_limit_are_counted_as_errors():
    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        await asyncio.sleep(0.05)
        await stream_tokens(seen, writer)

    report, _ = run_against(
        respond, arrivals=OpenLoop(rate=10_000), requests=10, max_in_flight=4, warmup=0
    )
    assert report.summary.failed == 6
    assert report.summary.errors[0].kind == "client_limit"


def test_a_share_is_cut_and_the_rest_unharmed():
    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        await stream_tokens(seen, writer, delay=0.0005)

    report, _ = run_against(respond, requests=30, output_tokens=20, cancel_share=0.5, seed=3)
    assert 5 < report.summary.cut < 25
    assert report.summary.completed + report.summary.cut == 30


def test_the_report_is_json_and_a_table_and_holds_no_key():
    report, server = run_against(stream_tokens, requests=4, output_tokens=3, api_key="sk-secret")
    text = to_json(report)
    parsed = json.loads(text)
    assert b"sk-secret" not in text
    assert server.seen[0].headers["authorization"] == "Bearer sk-secret"
    assert parsed["summary"]["ttft_ms"]["count"] == 4
    assert parsed["environment"]["cores"] >= 1
    assert parsed["config"]["requests"] == 4
    assert parsed["model"] == "tiny"
    table = to_table(report)
    assert "TTFT" in table
    assert "output tokens/s" in table
    assert max(map(len, table.splitlines())) <= 100


def test_secrets_are_hidden_in_commands():
    assert hide_secrets(["a", "--api-key", "k", "--api-key=k"]) == [
        "a",
        "--api-key",
        "***",
        "--api-key=***",
    ]


def test_an_unknown_model_is_told_with_those_there_are():
    with pytest.raises(RunFailed, match="no model 'big'; it has: tiny"):
        run_against(stream_tokens, model="big")


def test_a_failing_warm_up_ends_the_run_with_the_servers_words():
    async def respond(_seen: Seen, writer: asyncio.StreamWriter):
        await write_json(writer, {"error": {"message": "no such adapter"}}, status="404 Not Found")

    with pytest.raises(RunFailed, match="no such adapter"):
        run_against(respond)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser, command.Defaults(base_url="http://h:1/v1", api_key="k"))
    return parser.parse_args(words)


def test_defaults_come_from_whoever_read_the_environment():
    config = command.config_from(parse())
    assert config.target.base_url == "http://h:1/v1"
    assert config.target.api_key == "k"
    assert command.config_from(parse("--base-url", "http://x")).target.base_url == "http://x"


def test_flags_make_the_configuration():
    config = command.config_from(
        parse("--rate", "3", "--goodput", "ttft:500,itl:50", "--extra-body", '{"top_k": 2}')
    )
    assert config.arrivals == OpenLoop(rate=3.0)
    assert config.goodput is not None
    assert (config.goodput.ttft_ms, config.goodput.itl_ms) == (500, 50)
    assert config.extra_body == {"top_k": 2}


def test_targets_class_and_tenant_are_asked_for_and_measured():
    words = ("--ttft-ms", "500", "--itl-ms", "40.5", "--class", "batch", "--tenant", "blue")
    config = command.config_from(parse(*words))
    assert config.goodput == Goodput(ttft_ms=500, itl_ms=40.5)
    assert command.config_from(parse()).goodput is None
    both = command.config_from(parse("--ttft-ms", "500", "--goodput", "ttft:700"))
    assert both.goodput == Goodput(ttft_ms=700)

    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        await stream_tokens(seen, writer)

    _, server = run_against(respond, requests=2, headers=config.target.headers)
    sent = server.seen[-1].headers
    assert {name: value for name, value in sent.items() if name.startswith("x-headrace-")} == {
        "x-headrace-class": "batch",
        "x-headrace-tenant": "blue",
        "x-headrace-ttft-ms": "500.000",
        "x-headrace-itl-ms": "40.500",
    }


@pytest.mark.parametrize(
    "words",
    [("--rate", "1", "--concurrency", "2"), ("--constant",), ("--base-url", "nowhere")],
)
def test_contradictions_are_usage_errors(words: tuple[str, ...]):
    with pytest.raises(UsageError):
        command.config_from(parse(*words))


@pytest.mark.parametrize(
    "words",
    [
        ("--rate", "0"),
        ("--requests", "0"),
        ("--cancel", "2"),
        ("--goodput", "x:1"),
        ("--ttft-ms", "0"),
        ("--class", "urgent"),
        ("--tenant", "a\r\nb"),
        ("--extra-body", "["),
    ],
)
def test_values_out_of_range_are_refused(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_help_fits_a_screen_and_has_two_examples():
    parser = argparse.ArgumentParser(prog="headrace bench")
    command.add_arguments(parser)
    lines = parser.format_help().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("  headrace bench") for line in lines) == 2


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """3: nobody there; 1: the server refuses; 0: all went well; the JSON is written."""
    assert command.main(parse("--base-url", "http://127.0.0.1:1")) == 3
    assert "headrace serve" in capsys.readouterr().err

    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        await stream_tokens(seen, writer)

    async def scenario(*words: str) -> int:
        async with FakeServer(respond) as server:
            args = parse("--base-url", server.url, "--requests", "4", *words)
            return await asyncio.to_thread(command.main, args)

    path = tmp_path / "r.json"
    assert asyncio.run(scenario("--json", str(path))) == 0
    assert json.loads(path.read_bytes())["summary"]["completed"] == 4
    assert asyncio.run(scenario("--model", "big")) == 1
    assert "no model 'big'" in capsys.readouterr().err
