import os
import stat
from pathlib import Path

import pytest
import torch

from sslpl.files import write_whole
from sslpl.recording import checkpoint


def test_the_newest_checkpoint_is_loaded(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) == (None, None)
    for k in range(3):
        checkpoint.save(tmp_path, {"k": k, "weights": torch.full((3,), float(k)), "row": {"a": None}})
    saved, warning = checkpoint.load(tmp_path)
    assert saved is not None
    assert (saved["k"], saved["weights"].tolist(), saved["row"], warning) == (2, [2, 2, 2], {"a": None}, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["previous.ckpt", "state.ckpt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    for k in range(2):
        checkpoint.save(tmp_path, {"k": k})
    path = tmp_path / checkpoint.CURRENT
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:-9], "flipped": data, "emptied": b""}[damage])
    saved, warning = checkpoint.load(tmp_path)
    assert saved == {"k": 0}
    assert warning is not None
    assert "damaged" in warning


def test_a_kill_between_renaming_and_writing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"k": 0})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, {"k": 1})
    assert checkpoint.load(tmp_path) == ({"k": 0}, None)


def test_a_damaged_pair_starts_anew_and_says_so(tmp_path: Path) -> None:
    for k in range(2):
        checkpoint.save(tmp_path, {"k": k})
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    saved, warning = checkpoint.load(tmp_path)
    assert saved is None
    assert warning is not None


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "file"
    write_whole(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records flushes and renames in their order."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        done.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def recorded_replace(source: str | Path, target: str | Path) -> None:
        done.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    return done


def test_a_file_survives_a_power_cut(tmp_path: Path, disk: list[str]) -> None:
    write_whole(tmp_path / "file", "new")
    assert disk == ["sync file", "rename to file", "sync folder"]


def test_both_names_of_a_checkpoint_survive_a_power_cut(tmp_path: Path, disk: list[str]) -> None:
    for k in range(2):
        checkpoint.save(tmp_path, {"k": k})
    last = ["rename to previous.ckpt", "sync file", "rename to state.ckpt", "sync folder"]
    assert disk == ["sync file", "rename to state.ckpt", "sync folder", *last]


def test_a_folder_that_cannot_be_flushed_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
