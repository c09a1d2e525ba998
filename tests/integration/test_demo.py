"""``make demo`` does what it says: replicas come and go, one is killed, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo" / "demo.py"


def perform(report: Path, *arguments: str, limit: float) -> tuple[str, dict[str, Any]]:
    command = (sys.executable, DEMO, "--json", report, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_bytes())
    return done.stdout, found


def assert_nothing_was_lost(report: dict[str, Any]) -> None:
    assert report["failed"] == 0
    assert report["answered"] == report["requests"] > 8
    assert report["short_answers"] == 0
    check = report["recheck"]
    assert [check[name] for name in ("lost", "repeated", "foreign", "failed")] == [0, 0, 0, 0]
    assert check["identical"] + check["near_ties"] == check["asked"] >= report["moved_requests"]


def test_the_demo_on_the_simulated_model(tiny_gguf: Path, tmp_path: Path):
    arguments = ("--model", f"simulated:{tiny_gguf}", "--seconds", "8")
    shown, report = perform(tmp_path / "demo.json", *arguments, limit=50)
    assert_nothing_was_lost(report)
    assert report["recheck"]["near_ties"] == 0
    assert report["moved_requests"] > 0
    kinds = {event["kind"] for event in report["events"]}
    assert {"kill", "order", "start", "ready", "died"} <= kinds
    assert max(look["ready"] for look in report["looks"]) >= 2
    assert "failed 0" in shown
    assert "lost 0, repeated 0, foreign 0" in shown


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.timeout(400)
def test_the_demo_on_the_real_model(tmp_path: Path):
    _, report = perform(tmp_path / "demo.json", limit=380)
    assert_nothing_was_lost(report)
    assert report["moved_requests"] > 0
    assert report["cached_share"] > 0.3
