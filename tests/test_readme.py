"""Every command of the README is parsed by what would run it; the Python example is run elsewhere.

``make`` lines must name a target, ``headrace`` lines must get through the command's own parser
(and the settings through the loader's flags), ``curl`` lines must ask for a route that exists with
a body that the API accepts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from headrace.cli.main import COMMANDS
from headrace.server.gateway.api.decoding import BodyDecoder
from headrace.server.gateway.api.requests import ChatCompletionRequest, CompletionRequest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

GET_PATHS = {"/v1/models", "/health", "/metrics", "/live", "/ready"}
POST_BODIES = {"/v1/chat/completions": ChatCompletionRequest, "/v1/completions": CompletionRequest}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_is_one_that_runs(line: str):
    words = shlex.split(line, comments=True)
    match words[0]:
        case "git":
            assert words[1] == "clone"
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets
            for argument in words[2:]:
                assert argument.startswith("ARGS=")
                parses(["serve", *shlex.split(argument.removeprefix("ARGS="))])
        case ".venv/bin/headrace":
            parses(words[1:])
        case "curl":
            asks_for_a_route(words[1:])
        case other:
            pytest.fail(f"the README has a command that no test understands: {other}")


def parses(arguments: list[str]) -> None:
    name, *rest = arguments
    assert COMMANDS[name].help, f"{name} is not a public command"
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    if rest != ["--help"]:
        parser.parse_args(rest)


def asks_for_a_route(words: list[str]) -> None:
    url = next(word for word in words if word.startswith("http"))
    path = url.removeprefix("http://127.0.0.1:8000")
    if "-d" not in words:
        assert path in GET_PATHS
        return
    BodyDecoder(POST_BODIES[path])(words[words.index("-d") + 1].encode())


def test_the_readme_has_the_two_commands():
    lines = [line.split("#")[0].strip() for line in commands()]
    assert "make serve" in lines
    assert "make test" in lines


def test_the_body_check_can_fail():
    body = json.dumps({"prompt": "x", "max_tokens": "many"}).encode()
    with pytest.raises(Exception, match="max_tokens"):
        BodyDecoder(CompletionRequest)(body)


def test_links_of_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
