"""The benchmark of gateways beside others: what it counts, how it judges, and a short run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gateway_peers import Session, WrongAnswers, prompts
from gateway_report import Report, Turn, judge, markdown, medians_of
from gateway_routers import (
    DIRECT,
    OURS_AWARE,
    OURS_IN_TURN,
    RUST_AWARE,
    RUST_IN_TURN,
    Router,
)
from gateway_upstream import answer_probe, rendered

from headrace.bench.environment import describe_environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve" / "gateway_peers.py"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone"


def turn(router: Router, number: int, **figures: float) -> Turn:
    return Turn(router=router.name, round=number, figures=figures)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A port where every request gets the same answer at once."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("answer", [BUSY, OTHER])
async def test_quick_answers_that_are_wrong_are_not_counted(answer: bytes):
    async with answering(answer) as port:
        session = Session(None, port, "key")
        with pytest.raises(WrongAnswers, match="wrong, first"):
            await asyncio.to_thread(session.whole, "1kb", connections=2, seconds=0.05)


async def test_a_stream_that_is_refused_is_an_error_and_not_waited_for():
    async with answering(BUSY) as port:
        session = Session(None, port, "key")
        with pytest.raises(WrongAnswers, match="503"):
            await asyncio.to_thread(session.streams, 17, connections=2, seconds=0.05)


def test_ratios_are_held_against_the_better_of_the_peers():
    first, second = RUST_AWARE
    medians = medians_of(
        [
            turn(OURS_AWARE, 1, cpu_us_1kb=50.0),
            turn(first, 1, cpu_us_1kb=400.0),
            turn(second, 1, cpu_us_1kb=100.0),
        ]
    )
    verdict = judge(medians)[0]
    assert verdict.measured == "20,000 / 10,000 = 2.00"
    assert verdict.reached is False


def test_an_event_is_held_against_the_cheapest_of_all_peers():
    peers = [turn(peer, 1, cpu_us_event=100.0) for peer in RUST_AWARE]
    peers += [turn(peer, 1, cpu_us_event=30.0) for peer in RUST_IN_TURN]
    medians = medians_of([turn(OURS_AWARE, 1, cpu_us_event=20.0), *peers])
    (verdict,) = [each for each in judge(medians) if "paced event: <= 0.67" in each.bar]
    assert verdict.measured == "20.0 / 30.0 us = 0.67"
    assert verdict.reached is True


def test_a_bar_whose_peer_was_not_counted_stays_open():
    medians = medians_of(
        [turn(OURS_IN_TURN, 1, cpu_us_1kb=1.0), turn(RUST_IN_TURN[0], 1, cpu_us_1kb=9.0)]
    )
    assert judge(medians)[1].reached is None


def test_medians_are_of_rounds_and_what_is_added_counts_from_the_server_itself():
    turns = [turn(DIRECT, number, ttft_p50_ms=0.25) for number in (1, 2, 3)]
    turns += [turn(OURS_AWARE, 1 + place, ttft_p50_ms=ms) for place, ms in enumerate((9, 1, 0.75))]
    row = medians_of(turns)[OURS_AWARE.name]
    assert row["ttft_p50_ms"] == 1
    assert row["added_ttft_p50_ms"] == 0.75


def test_what_was_not_run_and_what_was_wrong_are_named():
    turns = [Turn(router=OURS_AWARE.name, round=1, errors=["1 KB: 3 of 9 wrong"])]
    report = Report(
        environment=describe_environment(["gateway_peers.py"]),
        load_average_before=0.0,
        versions={"headrace": "1"},
        not_run=["nginx"],
        medians=medians_of(turns),
        turns=turns,
        verdicts=[],
    )
    text = markdown(report)
    assert "Not run, since not found: nginx." in text
    assert f"{OURS_AWARE.name}, round 1, not counted: 1 KB: 3 of 9 wrong" in text


def test_prompts_of_a_group_begin_alike_and_no_two_are_the_same():
    large = prompts("32kb")
    assert len(set(large)) == 64
    assert len({text[: 16 * 1024] for text in large}) == 16
    assert len(set(prompts("1kb"))) == 256


def test_chats_that_begin_alike_have_token_ids_that_begin_alike():
    def ids(text: str) -> list[int]:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})
        found: list[int] = json.loads(rendered(body.encode()).partition(b"\r\n\r\n")[2])[
            "token_ids"
        ]
        return found

    one, other = ids("a" * 400 + "b" * 400), ids("a" * 400 + "c" * 400)
    same = [left == right for left, right in zip(one, other, strict=True)]
    assert all(same[:100])
    assert not any(same[120:200])


def test_a_probe_for_another_protocol_is_answered_by_closing():
    assert answer_probe(b"PRI * HTTP/2.0", b"") == b""
    assert answer_probe(b"GET /health HTTP/1.1\r\nhost: a", b"").startswith(b"HTTP/1.1 200")
    assert answer_probe(b"GET /other HTTP/1.1\r\nhost: a", b"").startswith(b"HTTP/1.1 404")


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_ours_is_measured_and_a_peer_that_is_not_there_is_named(tmp_path: Path):
    report = tmp_path / "peers.json"
    words = ["--routers", f"{OURS_AWARE.name},nginx", "--nginx", str(tmp_path / "nginx")]
    done = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            *words,
            "--repetitions",
            "1",
            "--seconds",
            "0.3",
            "--json",
            report,
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    found = json.loads(report.read_bytes())
    assert found["not_run"] == ["nginx"]
    assert not any(each["errors"] for each in found["turns"]), done.stderr
    row = found["medians"][OURS_AWARE.name]
    assert row["cpu_us_1kb"] >= row["gateway_cpu_us_1kb"] > 0
    assert row["cpu_us_32kb"] > row["cpu_us_1kb"]
    assert row["cpu_us_event"] > 0
    assert str(tmp_path) not in report.read_text()
