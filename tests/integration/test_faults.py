"""Replicas killed, hung and left under load: the fault suite of benchmarks/faults, made short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = Path(__file__).parents[2] / "benchmarks" / "faults" / "run.py"
SURVIVED = ("F1", "F2", "F3", "F4", "F11")
MORE = ("F5", "F6", "F8", "F27a", "F27b", "F27c", "F28")


def play(fault: str, report: Path, *arguments: str, limit: float = 50) -> list[dict[str, Any]]:
    """Run the suite; return its runs. A broken promise is an assertion that shows them all."""
    command = (sys.executable, SUITE, "--faults", fault, "--quick", "--json", report, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs: list[dict[str, Any]] = json.loads(report.read_bytes())["runs"]
    return runs


def assert_nothing_was_lost(run: dict[str, Any]) -> None:
    verdict = run["verdict"]
    assert verdict["failed"] == 0
    assert verdict["requests"] == verdict["answered"] + verdict["left"] >= 8
    assert_no_text_was_wrong(run)


def assert_no_text_was_wrong(run: dict[str, Any]) -> None:
    verdict = run["verdict"]
    wrong = ("lost_tokens", "duplicated_tokens", "foreign_tokens", "wrong_texts", "wrong_usages")
    assert [verdict[name] for name in wrong] == [0] * len(wrong)
    assert run["faults"] == []


@pytest.mark.parametrize("fault", SURVIVED)
def test_no_request_fails_and_no_token_is_wrong(fault: str, tmp_path: Path):
    few = ("--clients", "4") if fault == "F11" else ()  # they share few places: the rest waits
    (run,) = play(fault, tmp_path / "report.json", "--ablation", "none", *few)
    assert_nothing_was_lost(run)
    assert run["kv_blocks_held"] == 0
    assert fault == "F11" or run["moved"] > 0


def test_without_migration_a_killed_replica_costs_requests(tmp_path: Path):
    (run,) = play("F2", tmp_path / "report.json", "--ablation", "only")
    assert run["verdict"]["failed"] > 0
    assert run["verdict"]["wrong_texts"] == 0  # what came before the error was right


@pytest.mark.heavy
@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", [*SURVIVED, *MORE])
def test_no_request_fails_at_any_moment(fault: str, tmp_path: Path):
    arguments = ("--ablation", "none", "--seeds", "5", "--first-seed", "1")
    for run in play(fault, tmp_path / "report.json", *arguments, limit=220):
        assert_nothing_was_lost(run)


@pytest.mark.heavy
@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", ["F1", "F4", "F6", "F8", "F27a", "F27b", "F27c", "F28"])
def test_with_what_helps_switched_off_the_same_fault_costs_requests(fault: str, tmp_path: Path):
    arguments = ("--ablation", "only", "--seeds", "3")
    runs = play(fault, tmp_path / "report.json", *arguments, limit=220)
    assert sum(run["verdict"]["failed"] for run in runs) > 0
    assert [run["verdict"]["wrong_texts"] for run in runs] == [0, 0, 0]


@pytest.mark.heavy
@pytest.mark.timeout(240)
def test_a_foreign_stream_that_is_cut_ends_with_an_error_and_never_well(tmp_path: Path):
    arguments = ("--ablation", "none", "--seeds", "5", "--first-seed", "1")
    runs = play("F8b", tmp_path / "report.json", *arguments, limit=220)
    for run in runs:
        assert_no_text_was_wrong(run)
    assert sum(run["verdict"]["failed"] for run in runs) > 0  # something was cut
