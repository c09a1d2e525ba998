"""From the name of a model to its file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.server.child import child_command
from headrace.server.settings import DEFAULT_MODEL, SIMULATED_MODEL, ModelFile

if TYPE_CHECKING:
    from headrace.config import Config, Environment
    from headrace.model.text import TextModel


def cache_dir(config: Config, environment: Environment) -> Path:
    """Where models are kept."""
    own = config.model.cache_dir
    return Path(own).expanduser() if own else environment.cache_dir


def served_model(config: Config, environment: Environment) -> ModelFile:
    """Return the file of the model to be served, fetched first if it must be.

    A process of its own fetches, draws the progress and prints what goes wrong, so that this one
    stays small. Raises SystemExit with that process's exit code.
    """
    source, simulated = _source(config.model.name)
    command = child_command(
        "pull", source, "--cache-dir", str(cache_dir(config, environment)), "--print-path"
    )
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return _model_file(source, done.stdout.strip(), simulated=simulated)


def local_model(name: str, config: Config, environment: Environment) -> tuple[ModelFile, TextModel]:
    """Return a model for this process: fetched if it must be, with its words read."""
    from headrace.cli.pull import fetch
    from headrace.model.text import load_text_model

    source, simulated = _source(name)
    path = fetch(source, cache_dir(config, environment), environment)
    return _model_file(source, str(path), simulated=simulated), load_text_model(path)


def _source(name: str) -> tuple[str, bool]:
    """Return where the file is, and whether only its words are wanted.

    ``simulated`` has the words of the default model, ``simulated:MODEL`` those of another.
    """
    kind, _, words = name.partition(":")
    if kind != SIMULATED_MODEL:
        return name, False
    return words or DEFAULT_MODEL, True


def _model_file(source: str, path: str, *, simulated: bool) -> ModelFile:
    shown = Path(source).stem if source.endswith(".gguf") else source
    return ModelFile(path=path, name=SIMULATED_MODEL if simulated else shown, simulated=simulated)
