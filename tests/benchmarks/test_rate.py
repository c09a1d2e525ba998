"""The benchmark of rates, and with it two gateways before servers of others, keys and figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve" / "rate.py"


@pytest.mark.timeout(60)
def test_a_rate_is_held_by_two_gateways(tmp_path: Path):
    report = tmp_path / "rate.json"
    words = ["--workloads", "passthrough", "--gateways", "2", "--rate", "60", "--seconds", "1.5"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words, "--trial", "0.5", "--json", report],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # the bar is far above
    (row,) = json.loads(report.read_bytes())["rows"]
    assert row["gateways"] == 2
    assert row["outcome"]["sent"] == row["outcome"]["answered"] == 90
    assert row["outcome"]["errors"] == 0
    assert 0 < row["outcome"]["p50_ms"] <= row["outcome"]["p99_ms"]
