"""The secret that outlives a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.errors import ConfigError
from headrace.server.kv_tiers.secret import FILE, kept_secret

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_drawn_once_and_kept_where_only_its_owner_reads(tmp_path: Path):
    directory = tmp_path / "new" / "cache"
    drawn = iter(("ab" * 32, "cd" * 32))
    assert kept_secret(directory, lambda: next(drawn)) == "ab" * 32
    assert kept_secret(directory, lambda: next(drawn)) == "ab" * 32
    assert (directory / FILE).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in directory.iterdir()] == [FILE]


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "abc" * 11])
def test_one_that_is_damaged_is_not_replaced_in_silence(tmp_path: Path, text: str):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match="delete it"):
        kept_secret(tmp_path, lambda: "ab" * 32)


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="disk_cache_dir"):
        kept_secret(tmp_path / "file", lambda: "ab" * 32)
