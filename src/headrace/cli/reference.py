"""Writes docs/config.md: ``python -m headrace.cli.reference > docs/config.md``."""

from __future__ import annotations

import sys

import msgspec

from headrace.cli.flags import Flag, description
from headrace.cli.serve import FLAGS
from headrace.config import settings

_HEAD = """# Settings

Written from the settings themselves; do not edit. A setting `section.key` is `key` under
`[section]` in a TOML file (`--config FILE`, else `./headrace.toml`, else
`~/.config/headrace/headrace.toml`), `HEADRACE_SECTION_KEY` in the environment, and a flag of
`headrace serve` where one is named. Flags beat the environment, which beats the file. Times are
seconds. Whole numbers may be written `4k` (4,000), `4K` (4,096), `2m`, `2M`. Unknown settings are
errors.

| setting | flag | default | range | meaning |
|---|---|---|---|---|
"""


def reference() -> str:
    """Return the page."""
    flags = {flag.key: flag for flag in FLAGS}
    return _HEAD + "".join(_row(key, field, flags.get(key)) for key, field in settings().items())


def _row(key: str, field: msgspec.structs.FieldInfo, flag: Flag | None) -> str:
    name = f"`{flag.name}`" if flag is not None else ""
    return f"| `{key}` | {name} | {_default(field)} | {_range(field)} | {description(field)} |\n"


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = msgspec.to_builtins(field.default)
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case int():
            return str(value)
        case _:
            return f"`{value}`" if value else ""


def _range(field: msgspec.structs.FieldInfo) -> str:
    """The narrowest bounds of all the field's constraints."""
    metas = [entry for entry in field.type.__metadata__ if isinstance(entry, msgspec.Meta)]
    low = [f">= {meta.ge:,}" for meta in metas if meta.ge is not None]
    low += [f"> {meta.gt:,}" for meta in metas if meta.gt is not None]
    high = [f"<= {meta.le:,}" for meta in metas if meta.le is not None]
    return ", ".join((*low, *high))


if __name__ == "__main__":
    sys.stdout.write(reference())
