"""Settings from everywhere, in one loader: default < file < environment < flag.

A setting is ``section.key``. In a TOML file it is ``key`` under ``[section]``, in the environment
``HEADRACE_SECTION_KEY``. Every value remembers its origin, and errors name it. This is the only
module that reads the environment.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

from headrace.errors import ConfigError
from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.foreign.config import ForeignConfig
from headrace.server.gateway.http.limits import HttpLimits
from headrace.server.settings import (
    AutoscalerSettings,
    ConsoleConfig,
    EngineSettings,
    LogConfig,
    ModelConfig,
    ServerConfig,
)
from headrace.server.transport.frames import ConnectionLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PREFIX = "HEADRACE_"
FILE_NAME = "headrace.toml"
SECRETS = frozenset({"server.api_key", "foreign.api_key"})
"""Values that are never shown, nor part of the fingerprint."""

Setting: TypeAlias = str | int | float | bool | list["Setting"]
"""A value as a file, the environment or a flag gives it."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set. One section for each owner."""

    server: ServerConfig = ServerConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineSettings = EngineSettings()
    autoscaler: AutoscalerSettings = AutoscalerSettings()
    gateway: GatewayConfig = GatewayConfig()
    foreign: ForeignConfig = ForeignConfig()
    console: ConsoleConfig = ConsoleConfig()
    http: HttpLimits = HttpLimits()
    transport: ConnectionLimits = ConnectionLimits()
    log: LogConfig = LogConfig()


class Origin(NamedTuple):
    """A value and where it comes from, e.g. ``--port`` or ``HEADRACE_SERVER_PORT``."""

    value: Setting
    place: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and the place of each value that is not a default."""

    config: Config
    origins: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any setting but the secrets."""
        values = msgspec.to_builtins(self.config)
        for key in SECRETS:
            section, name = key.split(".")
            del values[section][name]
        return hashlib.sha256(msgspec.json.encode(values, order="deterministic")).hexdigest()[:12]

    @property
    def summary(self) -> str:
        """The fingerprint, and where values come from that are no defaults."""
        places = sorted({place.partition(": ")[0] for place in self.origins.values()})
        return f"{self.fingerprint} ({', '.join(places) if places else 'all defaults'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the process was started with, beside its arguments."""

    variables: Mapping[str, str]
    directory: Path
    home: Path

    def text(self, name: str) -> str | None:
        """A variable, None where it is missing or empty."""
        return self.variables.get(name) or None

    @property
    def wants_plain_output(self) -> bool:
        """No colours or bars (NO_COLOR, see no-color.org, or a CI system)."""
        return self.text("NO_COLOR") is not None or self.text("CI") is not None

    @property
    def cache_dir(self) -> Path:
        """Where fetched models and repacked weights are kept (XDG base directories)."""
        return self._xdg("XDG_CACHE_HOME", ".cache")

    @property
    def config_dir(self) -> Path:
        """Where the user's own settings are (XDG base directories)."""
        return self._xdg("XDG_CONFIG_HOME", ".config")

    @property
    def runtime_dir(self) -> Path | None:
        """A directory of this user that ends with the session, if there is one."""
        text = self.text("XDG_RUNTIME_DIR")
        return None if text is None else Path(text)

    def _xdg(self, name: str, default: str) -> Path:
        text = self.text(name)
        base = Path(text) if text is not None and Path(text).is_absolute() else self.home / default
        return base / "headrace"


def read_environment() -> Environment:
    """Return the environment of this process."""
    return Environment(variables=dict(os.environ), directory=Path.cwd(), home=Path.home())


def load_config(
    *,
    flags: Mapping[str, Origin],
    environment: Environment,
    path: Path | None = None,
) -> Loaded:
    """Return the settings. ``flags`` are by ``section.key``; ``path`` is that of ``--config``.

    Raises ConfigError for an unknown key, a wrong type or a number out of range.
    """
    values = dict(_from_file(path, environment))
    values.update(_from_environment(environment.variables))
    values.update(flags)
    sections: dict[str, dict[str, object]] = {section: {} for section in Config.__struct_fields__}
    for key, origin in values.items():
        section, name = key.split(".")
        sections[section][name] = _converted(key, origin)
    config = msgspec.convert(sections, Config)
    return Loaded(config, {key: origin.place for key, origin in values.items()})


def settings() -> dict[str, msgspec.structs.FieldInfo]:
    """Return every ``section.key`` with its field. A section inside another is one of its own."""
    return {
        f"{section.name}.{field.name}": field
        for section in msgspec.structs.fields(Config)
        for field in msgspec.structs.fields(section.type)
        if not isinstance(field.default, msgspec.Struct)
    }


def _from_file(path: Path | None, environment: Environment) -> Iterator[tuple[str, Origin]]:
    path = path or _default_file(environment)
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name another file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for section, entries in content.items():
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: {section} stands outside a section; write [SECTION] above")
        _known(section, Config.__struct_fields__, place=f"section [{section}] of {path}")
        for name, value in entries.items():
            place = f"{path}: {section}.{name}"
            yield _known(f"{section}.{name}", settings(), place=place), Origin(value, place)


def _default_file(environment: Environment) -> Path | None:
    for directory in (environment.directory, environment.config_dir):
        if (directory / FILE_NAME).is_file():
            return directory / FILE_NAME
    return None


def _from_environment(variables: Mapping[str, str]) -> Iterator[tuple[str, Origin]]:
    names = {PREFIX + key.replace(".", "_").upper(): key for key in settings()}
    for variable, value in variables.items():
        if variable.startswith(PREFIX):
            known = _known(variable, names, place=f"environment variable {variable}")
            yield names[known], Origin(value, variable)


def _known(key: str, known: Iterable[str], *, place: str) -> str:
    """Return ``key`` if it is known; raise ConfigError with the nearest one otherwise."""
    candidates = list(known)
    if key in candidates:
        return key
    near = difflib.get_close_matches(key, candidates, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(candidates[:8])}, ..."
    raise ConfigError(f"{place}: unknown setting; {hint}")


_HUMAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKmM])")
_FACTORS = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}
_WORDS = {"yes": True, "on": True, "no": False, "off": False}


def human_int(text: str) -> int | None:
    """Return ``25.6k`` as 25600, ``1K`` as 1024 (also m, M); None if it is nothing of that kind.

    Decimals need a decimal factor, so that the result is what it says.
    """
    match = _HUMAN.fullmatch(text)
    if match is None:
        return None
    number, unit = match.groups()
    if "." in number and unit.isupper():
        return None
    value = float(number) * _FACTORS[unit]
    return int(value) if value == int(value) else None


def _converted(key: str, origin: Origin) -> object:
    """Return the value as its field's type. Text is read as numbers, truth values and lists.

    A number in a file is text where text is wanted.
    """
    value, place = origin
    field = settings()[key]
    candidates: list[object] = [value]
    if isinstance(value, str):
        candidates = [value.split(), value, human_int(value), _WORDS.get(value.lower())]
    elif isinstance(value, int) and not isinstance(value, bool):
        candidates.insert(0, str(value))  # `replicas = 2`
    problem = ""
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            return msgspec.convert(candidate, field.type, strict=not isinstance(value, str))
        except msgspec.ValidationError as error:
            problem = str(error)
    shown = "" if key in SECRETS else f" is {value!r}"
    raise ConfigError(f"{place}{shown}: {problem[:1].lower()}{problem[1:]}")
