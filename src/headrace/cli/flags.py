"""From settings to flags: a flag's type, range and words are those of its setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.config import Loaded, Origin, load_config, settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from headrace.config import Environment


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of the command line and the setting it sets. No ``metavar``: a switch, on or off.

    ``repeated``: it may be given several times, and the setting is a list.
    """

    name: str
    key: str
    metavar: str = ""
    off: bool = False
    repeated: bool = False

    @property
    def destination(self) -> str:
        """Its name in the argparse namespace."""
        return self.name.lstrip("-").replace("-", "_")


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    """Declare ``flags`` and ``--config``."""
    fields = settings()
    for flag in flags:
        field = fields[flag.key]
        text = description(field).replace("%", "%%")
        if flag.metavar:
            default = "" if field.default in ("", 0, ()) else f" ({_shown(field.default)})"
            action = "append" if flag.repeated else "store"
            parser.add_argument(flag.name, metavar=flag.metavar, action=action, help=text + default)
        else:
            const, words = ("false", f"do not {text}") if flag.off else ("true", text)
            parser.add_argument(
                flag.name, action="store_const", const=const, default=None, help=words
            )
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings in TOML")


def load_settings(
    args: argparse.Namespace, flags: Sequence[Flag], environment: Environment
) -> Loaded:
    """Return the settings, those of ``args`` above all others."""
    given = vars(args)
    values = {
        flag.key: Origin(given[flag.destination], flag.name)
        for flag in flags
        if given[flag.destination] is not None
    }
    return load_config(flags=values, environment=environment, path=given["config"])


def description(field: msgspec.structs.FieldInfo) -> str:
    """The words of the field's Meta."""
    for entry in field.type.__metadata__:
        if isinstance(entry, msgspec.Meta) and entry.description:
            return entry.description
    raise AssertionError(f"{field.name} has no description")


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
