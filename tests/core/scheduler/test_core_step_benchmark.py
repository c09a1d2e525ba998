"""benchmarks/micro/core_step.py runs and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "micro" / "core_step.py"
LONG_PROMPT = SCRIPT.with_name("long_prompt.py")


def test_the_benchmark_of_a_step_runs_and_writes_json(tmp_path: Path):
    target = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--steps", "5", "--sequences", "2", "3"]
    command += ["--waiting", "40", "--json", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert "2 sequences, 1 in flight: median" in done.stdout
    document = json.loads(target.read_text())
    assert {"command", "commit", "date", "machine", "python"} < document.keys()
    assert all(figure["median_ms"] > 0 for figure in document["figures"])
    scenes = {figure["scene"] for figure in document["figures"]}
    assert scenes == {"decode", "waiting", "churn", "blocked", "sharing"}
    assert "sharing: x" in done.stdout


def test_the_benchmark_of_a_long_prompt_runs_and_says_what_is_slowest(tmp_path: Path):
    target = tmp_path / "figures.json"
    command = [sys.executable, LONG_PROMPT, "--tokens", "2048", "--beside", "0", "2"]
    command += ["--bar", "1000", "--json", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert "worst event" in done.stdout
    figures = json.loads(target.read_text())["figures"]
    assert [figure["cached"] for figure in figures] == [False, True, False, True]
    assert figures[0]["steps"] > figures[1]["steps"]
    assert all(figure["step_max_ms"] >= figure["step_median_ms"] > 0 for figure in figures)
