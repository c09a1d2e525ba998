"""The command line: quick, short, and honest about errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace import __version__
from headrace.cli.main import COMMANDS, main
from headrace.cli.terminal import Progress, draws_bars
from headrace.clock import MonotonicClock
from headrace.config import Environment
from headrace.errors import MissingExtra

if TYPE_CHECKING:
    import argparse

PUBLIC = [name for name, command in COMMANDS.items() if command.help]
HEAVY = ("numpy", "tokenizers", "openvino", "asyncio", "msgspec", "jinja2", "gguf")


def test_help_is_answered_within_200_ms_and_imports_nothing_heavy():
    clock = MonotonicClock()
    code = """
import sys
from headrace.cli.main import main
try: main(["--help"])
except SystemExit: print(*sys.modules)
"""
    seconds = []
    for _ in range(5):
        before = clock.now()
        done = subprocess.run(
            (sys.executable, "-m", "headrace", "--help"), capture_output=True, check=True
        )
        seconds.append(clock.now() - before)
    assert b"serve" in done.stdout
    assert min(seconds) < 0.2
    modules = subprocess.run((sys.executable, "-c", code), capture_output=True, check=True)
    assert not set(HEAVY) & set(modules.stdout.decode().split())


@pytest.mark.parametrize("name", PUBLIC)
def test_each_help_fits_a_screen_and_has_two_examples(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    assert max(len(line) for line in text.splitlines()) <= 100
    examples = text.partition("examples:")[2]
    assert examples.count(f"headrace {name}") >= 2


def test_internal_commands_are_not_in_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "pull" in text
    assert "child-" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "headrace: the following arguments are required: COMMAND"),
        (("sevre",), "headrace: argument COMMAND: invalid choice: 'sevre'"),
        (("serve", "--prot", "1"), "headrace serve: unrecognized arguments: --prot; see headrace"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(words)
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "a", "--model", "b"), "headrace: two models: a and --model b; name one"),
        (("serve", "--port", "99999"), "headrace: --port is '99999': expected `int` <= 65535"),
        (("serve", "--config", "/no/file"), "headrace: /no/file: No such file or directory"),
        (("run", "smollm", "x"), "headrace: no model is called 'smollm'; did you mean"),
        (("pull", "/no/x.gguf"), "headrace: /no/x.gguf: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(words)
    assert errors.count("\n") == 1


class Command:
    """A command module that ends as it is told to."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        pass

    def main(self, args: argparse.Namespace) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MissingExtra("pip install x"), 1, "headrace: pip install x\n"),
    ],
)
def test_how_commands_may_end(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("importlib.import_module", lambda _: Command(error))
    assert main(["version"]) == code
    assert capsys.readouterr().err == words


def test_version_names_what_it_stands_on(capsys: pytest.CaptureFixture[str]):
    assert main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["headrace"] == __version__
    assert {"python", "platform", "openvino", "tokenizers"} <= set(found)
    assert main(["version"]) == 0
    assert f"headrace    {__version__}" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_bars_are_for_terminals_where_nobody_asked_for_plain_output(variable: str):
    def environment(**variables: str) -> Environment:
        return Environment(variables=variables, directory=Path("/"), home=Path("/"))

    assert draws_bars(environment(), Terminal())
    assert not draws_bars(environment(), io.StringIO())
    assert not draws_bars(environment(**{variable: "1"}), Terminal())


def test_a_bar_shows_progress_and_goes_away():
    terminal = Terminal()
    with Progress("pulling x", draws_bars=True, stream=terminal) as progress:
        progress.update(47_000_000, 100_000_000)
        line = terminal.getvalue()
        assert "[##############................]  47%  47 of 100 MB" in line
        progress.update(47_000_001, 100_000_000)
        assert terminal.getvalue() == line  # nothing new to show
        progress.update(1_000_000, None)
    assert terminal.getvalue().endswith(" \r")


def test_where_no_bar_is_drawn_there_is_one_line_if_there_is_anything_to_fetch():
    log = io.StringIO()
    with Progress("pulling x", draws_bars=False, stream=log):
        pass
    assert log.getvalue() == ""
    with Progress("pulling x", draws_bars=False, stream=log) as progress:
        for done in range(5):
            progress.update(done, 93_000_000)
    assert log.getvalue() == "pulling x (93 MB)\n"
