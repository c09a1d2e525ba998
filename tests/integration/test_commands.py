"""Commands in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LIMIT = 60


def command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "headrace", *arguments)


def run(
    *arguments: str, environment: Mapping[str, str], given: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        input=given,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        timeout=LIMIT,
        check=False,
    )


def test_run_answers_the_same_with_the_same_seed_and_reads_standard_input(
    simulated: str, environment: Mapping[str, str]
):
    flags = ("--seed", "7", "--max-tokens", "20")
    first = run("run", simulated, "a question", *flags, environment=environment)
    second = run("run", simulated, *flags, given="a question", environment=environment)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert len(first.stdout) > 20
    assert second.stdout == first.stdout


def test_run_refuses_a_prompt_that_does_not_fit_and_numbers_out_of_range(
    simulated: str, environment: Mapping[str, str]
):
    long = run("run", simulated, "word " * 3000, environment=environment)
    assert long.returncode == 1
    assert "tokens" in long.stderr
    hot = run("run", simulated, "x", "--temperature", "9", environment=environment)
    assert hot.returncode == 2
    for done in (long, hot):
        assert done.stderr.startswith("headrace: ")
        assert done.stderr.count("\n") == 1


def _heed_ctrl_c() -> None:
    """In the child: a job in the background, as the tests may be, is born ignoring SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_run_quietly(simulated: str, environment: Mapping[str, str]):
    with subprocess.Popen(
        command("run", simulated, "a question", "--max-tokens", "900"),
        preexec_fn=_heed_ctrl_c,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.parametrize("flags", [(), ("--print-path",)])
def test_pull_of_a_file_says_where_it_is(
    flags: tuple[str, ...], tiny_gguf: Path, environment: Mapping[str, str]
):
    done = run("pull", str(tiny_gguf), *flags, environment=environment)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith(str(tiny_gguf))
