"""Files that hyperparameters name are known by content: paths, digests, and files that change or are not there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from advbench.errors import InputError
from advbench.registry import pinned
from advbench.registry.params import Params

CONTENT = b"some weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pinned, "_paths", {})
    path = tmp_path / "net.pt"
    path.write_bytes(CONTENT)
    return path


class Some(Params):
    weights: pinned.Files = ()
    other: tuple[str, ...] = ()


def test_a_hyperparameter_holds_the_digest_whatever_the_path(file: Path) -> None:
    (file.parent / "elsewhere.bin").write_bytes(CONTENT)
    for name in ("net.pt", ["net.pt"], [str(file)], "elsewhere.bin", f"net.pt#sha256:{DIGEST}", f"sha256:{DIGEST}"):
        assert Some(weights=name).weights == (f"sha256:{DIGEST}",)
    assert Some(other="net.pt").other == ("net.pt",)
    assert [pinned.names_files(field) for field in Some.model_fields.values()] == [True, False]


def test_content_is_read_by_digest_from_the_path_that_was_named_even_from_another_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = Some(weights="net.pt").weights
    monkeypatch.chdir("/")
    assert pinned.content(name) == CONTENT
    assert pinned.known() == {DIGEST: str(file)}
    assert pinned.shown(name) == str(file)


def test_a_pinned_file_is_not_read_until_it_is_needed(file: Path) -> None:
    name = pinned.pinned("net.pt")
    assert name == f"net.pt#sha256:{DIGEST}"
    assert pinned.pinned(name) == name
    assert pinned.without_path(name) == f"sha256:{DIGEST}"
    file.unlink()
    assert pinned.by_digest(name) == f"sha256:{DIGEST}"
    with pytest.raises(InputError, match=r"net\.pt: expected a file, got no such file in "):
        pinned.content(name)


def test_a_file_that_changed_is_refused_and_has_another_digest(file: Path) -> None:
    before = pinned.pinned("net.pt")
    os.utime(file, ns=(1, 1))
    file.write_bytes(b"other content")
    assert pinned.pinned("net.pt") != before
    with pytest.raises(InputError, match=f"with SHA-256 {DIGEST[:12]}, as planned, got another, "):
        pinned.content(before)


def test_a_worker_knows_what_it_is_told() -> None:
    name = f"sha256:{DIGEST}"
    with pytest.raises(InputError, match=f"file with SHA-256 {DIGEST[:12]}: expected a path to it, got none"):
        pinned.content(name)
    pinned.know({DIGEST: str(Path("net.pt").absolute())})
    assert pinned.content(name) == CONTENT


@pytest.mark.parametrize(
    ("name", "got"), [("no.pt", "no such file"), (".", "a folder"), ("/dev/zero", "a device or pipe")]
)
def test_what_is_no_file_is_refused(name: str, got: str) -> None:
    with pytest.raises(InputError, match=f"expected a file, got {got}"):
        Some(weights=name)
    with pytest.raises(InputError, match="expected its SHA-256 in the form sha256:DIGEST, got a path"):
        pinned.without_path(name)


def test_a_folder_is_searched_for_files_of_which_only_the_digest_is_known(file: Path, tmp_path: Path) -> None:
    settings = {"weights": [f"sha256:{DIGEST}"], "inner": {"std": f"x#sha256:{'0' * 64}"}, "other": [1, None, "net.pt"]}
    assert pinned.digests(settings) == {DIGEST, "0" * 64}
    assert pinned.lacking(settings) == {DIGEST, "0" * 64}
    pinned.search(tmp_path / "none", {DIGEST})
    (tmp_path / "folder").mkdir()
    pinned.search(tmp_path, {DIGEST})
    assert pinned.lacking(settings) == {"0" * 64}
    assert pinned.content(f"sha256:{DIGEST}") == CONTENT
    file.unlink()
    assert pinned.lacking(settings) == {DIGEST, "0" * 64}
