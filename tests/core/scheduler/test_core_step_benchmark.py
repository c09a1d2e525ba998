"""benchmarks/micro/core_step.py runs and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "micro" / "core_step.py"


def test_the_benchmark_of_a_step_runs_and_writes_json(tmp_path: Path):
    target = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--steps", "5", "--sequences", "2", "--json", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert "2 sequences, 1 in flight: median" in done.stdout
    document = json.loads(target.read_text())
    assert {"command", "commit", "date", "machine", "python"} < document.keys()
    assert all(figure["median_ms"] > 0 for figure in document["figures"])
