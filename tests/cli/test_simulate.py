"""``headrace simulate`` from outside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from headrace.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ["simulate", "--trace", "gen:poisson?rate=20&requests=40&prompt=64&output=16"]


def test_a_run_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.json"
    assert main([*SMALL, "--replicas", "2", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "40 of 40 requests completed, 0 failed" in shown
    assert "TTFT" in shown
    assert "r1" in shown
    figures = json.loads(path.read_text())
    assert figures["completed"] == 40
    assert figures["setup"]["gpu"] == "h100-sxm"
    assert figures["ttft_ms"]["p50"] > 0


def test_policies_are_compared_side_by_side(capsys: pytest.CaptureFixture[str]):
    arguments = ["--compare", "round_robin,predicted_ttft", "--replicas", "2", "--json", "-"]
    assert main([*SMALL, *arguments]) == 0
    captured = capsys.readouterr()
    assert "round_robin" in captured.err
    assert "predicted_ttft" in captured.err
    assert "TTFT p95" in captured.err
    assert [run["setup"]["policy"] for run in json.loads(captured.out)] == [
        "round_robin",
        "predicted_ttft",
    ]


def test_failed_requests_give_exit_code_1():
    assert main([*SMALL, "--gpu", "cpu", "--model", "smollm2-135m", "--timeout", "0.2"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "lama-3.1-8b"], "did you mean llama-3.1-8b"),
        (["--gpu", "h10"], "did you mean h100"),
        (["--policy", "predicted"], "predicted_ttft"),
        (["--compare", "round_robin,predict"], "predicted_ttft"),
        (["--replicas", "0"], "--replicas is 0; it must be 1 to"),
        (["--autoscale", "3"], "FLOOR:CEILING"),
        (["--autoscale", "5:2"], "not above the ceiling"),
        (["--window", "9:3"], "--window is '9:3'; it must be FROM:TO"),
        (["--trace", "gen:poisson?class=bulk"], "unknown class 'bulk'"),
        (["--kill", "soon"], "--kill is 'soon'; it must be NUMBER@SECONDS"),
        (["--slow", "1x"], "--slow is '1x'; it must be NUMBERxFACTOR@SECONDS"),
        (["--gateways", "0"], "--gateways is '0'; it must be NUMBER or NUMBER@MS"),
        (["--model", "llama-3.1-70b"], "--tp 4 would fit"),
        (["--max-num-batched-tokens", "8"], "max_num_batched_tokens is 8"),
        (["--json", "/nowhere/run.json"], "/nowhere/run.json: No such file"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    assert main([*SMALL, *arguments]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


@pytest.mark.parametrize(
    "arguments", [["--rate", "0"], ["--tp", "0"], ["--delay-ms", "-1"], ["--precision", "int3"]]
)
def test_a_number_out_of_range_is_refused_by_the_parser(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        main([*SMALL, *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
