"""Trace readers: good files, and files that are wrong."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from headrace.errors import UsageError
from headrace.monitoring.goodput import Targets
from headrace.twin.texts import prompt_of
from headrace.twin.traces.arrivals import merged
from headrace.twin.traces.opening import open_trace
from headrace.twin.traces.terms import Terms
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from pathlib import Path

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:50.9951690,879,55
"""
VOCAB = 1000


def written(folder: Path, text: str, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def mooncake(*lines: dict[str, object]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def line(at: int, length: int, output: int, *blocks: int) -> dict[str, object]:
    return {
        "timestamp": at,
        "input_length": length,
        "output_length": output,
        "hash_ids": list(blocks),
    }


def test_azure_rows_become_arrivals(tmp_path: Path):
    trace = open_trace(written(tmp_path, AZURE), seed=0)
    assert [a.at for a in trace.arrivals] == [0.0, pytest.approx(4.314579), pytest.approx(4.314579)]
    assert [a.prompt_tokens for a in trace.arrivals] == [374, 396, 879]
    assert [a.max_tokens for a in trace.arrivals] == [44, 109, 55]
    prompts = [prompt_of(a.prompt, VOCAB) for a in trace.arrivals]
    assert [len(prompt) for prompt in prompts] == [374, 396, 879]
    assert len({prompt[:16] for prompt in prompts}) == 3  # nothing in common


def test_columns_may_come_in_any_order_with_others_between_them(tmp_path: Path):
    text = "GeneratedTokens,Model,TIMESTAMP,ContextTokens\n5,x,2024-05-10 00:00:00+00:00,7\n"
    (arrival,) = open_trace(written(tmp_path, text), seed=0).arrivals
    assert (arrival.prompt_tokens, arrival.max_tokens) == (7, 5)


def test_a_gzip_file_reads_like_a_plain_one(tmp_path: Path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(AZURE.encode()))
    assert (
        open_trace(str(path), seed=0).arrivals
        == open_trace(written(tmp_path, AZURE), seed=0).arrivals
    )


def test_mooncake_requests_share_the_blocks_that_they_name(tmp_path: Path):
    text = mooncake(line(0, 1100, 3, 7, 8, 9), line(3000, 1100, 4, 7, 8, 10), line(3000, 512, 1, 7))
    first, second, third = open_trace(written(tmp_path, text, "trace.jsonl"), seed=0).arrivals
    assert [first.at, second.at, third.at] == [0.0, 3.0, 3.0]
    prompts = [prompt_of(a.prompt, VOCAB) for a in (first, second, third)]
    assert [len(prompt) for prompt in prompts] == [1100, 1100, 512]
    assert prompts[0][:1024] == prompts[1][:1024]
    assert prompts[0][1024:1040] != prompts[1][1024:1040]
    assert prompts[2] == prompts[0][:512]


def test_only_the_first_requests_are_read_if_so_asked(tmp_path: Path):
    text = AZURE + "this would be an error\n"
    assert len(open_trace(written(tmp_path, text), seed=0, limit=2).arrivals) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("hello\n", "no format that is known"),
        ("TIMESTAMP,ContextTokens\n", "line 1: no column GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests in this trace"),
        (AZURE + "2023-11-16 18:15:51,12\n", "line 5: 2 columns; the first line names 3"),
        (AZURE + "yesterday,12,3\n", "line 5: TIMESTAMP is 'yesterday'"),
        (AZURE + "2023-11-16 18:15:51,12.5,3\n", "line 5: ContextTokens is '12.5'"),
        (AZURE + "2023-11-16 18:15:51,12,0\n", "line 5: GeneratedTokens is '0'"),
        (AZURE + "2023-11-16 18:15:51,-4,9\n", "line 5: ContextTokens is '-4'"),
        (AZURE + "2023-11-16 18:15:49,12,3\n", "line 5: .* earlier than the line before"),
        (AZURE + "2023-11-16 18:15:51+00:00,12,3\n", "line 5: TIMESTAMP has a time zone"),
        ('{"timestamp": 1}\n', "line 1: .*input_length.*hash_ids"),
        ('{"timestamp": 1, \n', "line 1: .*expected is a JSON object"),
        (mooncake(line(0, 1100, 3, 7, 8)), "line 1: hash_ids has 2 entries; 1100 tokens are 3"),
        (mooncake(line(0, 0, 3)), "line 1: input_length is 0"),
        (mooncake(line(9, 5, 3, 1), line(3, 5, 3, 1)), "line 2: 0.006 s earlier"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(tmp_path: Path, text: str, words: str):
    with pytest.raises(UsageError, match=f"trace.csv.*{words}"):
        open_trace(written(tmp_path, text), seed=0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(AZURE.encode(), mtime=0)[:40], "not a whole gzip file"),
        (b"TIMESTAMP,ContextTokens", "not a whole gzip file"),
        (gzip.compress(b"\xff\xfe\x00,\x00", mtime=0), "not text"),
    ],
)
def test_a_broken_gzip_file_is_an_error(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        open_trace(str(path), seed=0)


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nowhere.csv: No such file"):
        open_trace(str(tmp_path / "nowhere.csv"), seed=0)
    with pytest.raises(UsageError, match=r"Is a directory"):
        open_trace(str(tmp_path), seed=0)


def test_an_endless_line_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match="characters: this is no trace"):
        open_trace(written(tmp_path, "a," * (1 << 20)), seed=0)


def test_generated_workloads_are_a_function_of_their_seed():
    text = "gen:poisson?rate=10&requests=200&prompt=100&output=20"
    trace = open_trace(text, seed=1)
    assert trace == open_trace(text, seed=1) != open_trace(text, seed=2)
    assert trace.seconds == pytest.approx(20, rel=0.3)
    lengths = [a.prompt_tokens for a in trace.arrivals]
    assert min(lengths) >= 50
    assert max(lengths) <= 150
    assert sum(lengths) / 200 == pytest.approx(100, rel=0.1)


def test_shared_prefixes_are_those_of_their_groups():
    trace = open_trace("gen:shared-prefix?groups=3&prefix=64&prompt=16&requests=50", seed=0)
    prompts = [prompt_of(a.prompt, VOCAB) for a in trace.arrivals]
    assert len({prompt[:64] for prompt in prompts}) == 3
    assert len({prompt[64:72] for prompt in prompts}) == 50


def test_each_turn_of_a_session_begins_with_the_turn_before_and_its_answer():
    trace = open_trace("gen:sessions?turns=3&requests=6&prompt=40&output=10&rate=0.001", seed=0)
    for session in (trace.arrivals[:3], trace.arrivals[3:]):
        for before, after in pairwise(session):
            assert after.at == pytest.approx(before.at + 10)
            assert after.prompt[: len(before.prompt)] == before.prompt
            answer = after.prompt[len(before.prompt)]
            assert answer == (before.seed, before.prompt_tokens, before.max_tokens)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gen:poison", "unknown workload 'poison': did you mean poisson"),
        ("gen:poisson?rat=4", "'rat': did you mean rate"),
        ("gen:poisson?rate=fast", "rate is 'fast'"),
        ("gen:poisson?rate=0", "rate is '0'"),
        ("gen:poisson?requests=2.5", "requests is '2.5'"),
        ("gen:poisson?rate", "name=value"),
        ("gen:poisson?class=bach", "'bach': did you mean batch"),
        ("gen:poisson?ttft_ms=soon", "ttft_ms is 'soon'"),
        ("gen:poisson?weight=0", "weight is '0'; it must be 0.01 to 100"),
        ("gen:poisson?tenant=a%20b", "tenant is 'a b'"),
    ],
)
def test_a_wrong_workload_is_an_error(text: str, words: str):
    with pytest.raises(UsageError, match=words):
        open_trace(text, seed=0)


def test_requests_of_a_trace_are_made_on_its_terms(tmp_path: Path):
    query = "class=batch&tenant=blue&weight=2&ttft_ms=500&itl_ms=50&deadline_ms=9000"
    expected = Terms(PriorityClass.BATCH, "blue", 2.0, Targets(0.5, 0.05, 9.0))
    generated = open_trace(f"gen:poisson?requests=3&{query}", seed=0)
    read = open_trace(f"{written(tmp_path, AZURE)}?{query}", seed=0)
    assert {a.terms for a in (*generated.arrivals, *read.arrivals)} == {expected}
    assert {a.terms for a in open_trace("gen:poisson?requests=3", seed=0).arrivals} == {Terms()}
    with pytest.raises(UsageError, match="unknown term of a trace 'rate'"):
        open_trace(f"{written(tmp_path, AZURE)}?rate=4", seed=0)


def test_merged_traces_come_in_order_of_time_and_share_no_text():
    text = "gen:sessions?turns=2&requests=20&prompt=40&output=10"
    traces = [open_trace(f"{text}&class={each}", seed=0) for each in ("batch", "interactive")]
    whole = merged(traces)
    assert [a.at for a in whole.arrivals] == sorted(a.at for t in traces for a in t.arrivals)
    keys = [
        {piece.key for a in whole.arrivals if a.terms.priority is each for piece in a.prompt}
        for each in (PriorityClass.BATCH, PriorityClass.INTERACTIVE)
    ]
    assert not keys[0] & keys[1]
    assert len({a.seed for a in whole.arrivals}) == 40
    assert merged(traces[:1]) is traces[0]


def test_a_trace_can_be_played_faster_and_spread():
    trace = open_trace("gen:poisson?requests=100", seed=0)
    assert trace.faster(2).seconds == pytest.approx(trace.seconds / 2)
    spread = trace.spread(3.0, seed=5)
    assert spread == trace.spread(3.0, seed=5)
    moves = {a.seed: a.at for a in spread.arrivals}
    assert all(0 <= moves[a.seed] - a.at < 3 for a in trace.arrivals)
    assert [a.at for a in spread.arrivals] == sorted(moves.values())
