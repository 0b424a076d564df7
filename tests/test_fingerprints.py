"""Fingerprints of files: of their content, read again only if size or modification time has changed."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from sslpl import fingerprints
from sslpl.fingerprints import file_fingerprint


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a file large enough that its fingerprint is cached."""
    monkeypatch.setattr(fingerprints, "LARGE", 4)
    (tmp_path / "a.pt").write_bytes(b"first")
    return tmp_path / "a.pt"


def test_it_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"first")
    assert file_fingerprint(path) == hashlib.sha256(b"first").hexdigest()[:16]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]  # a small file is read each time


def test_a_large_file_is_read_again_only_after_a_change(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file_fingerprint(large)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "content_digest", None)
        assert file_fingerprint(large) == before
    large.write_bytes(b"other")  # of the same size
    os.utime(large, ns=(1, 1))
    assert file_fingerprint(large) == hashlib.sha256(b"other").hexdigest()[:16]
    large.write_bytes(b"longer")
    os.utime(large, ns=(1, 1))
    assert file_fingerprint(large) == hashlib.sha256(b"longer").hexdigest()[:16]


@pytest.mark.parametrize("spoilt", [b"", b"[]", b"{}", b"\xff", b"[1, 2]", b'[5, "x", 3]'])
def test_a_spoilt_cache_does_not_matter(large: Path, spoilt: bytes) -> None:
    expected = file_fingerprint(large)
    large.with_name(".a.pt.sslpl.json").write_bytes(spoilt)
    assert file_fingerprint(large) == expected
    assert json.loads(large.with_name(".a.pt.sslpl.json").read_text())[2] == expected


def test_a_folder_that_cannot_be_written_does_not_matter(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(fingerprints, "write_whole", fails)
    assert file_fingerprint(large) == hashlib.sha256(b"first").hexdigest()[:16]
    assert [entry.name for entry in large.parent.iterdir()] == ["a.pt"]
