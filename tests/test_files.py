"""Writing files: whole ones, or none."""

from pathlib import Path

import pytest

from rmlora.files import move_in


def test_files_that_belong_together_come_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def half(place: Path) -> None:
        (place / "a.txt").write_text("new")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        move_in(tmp_path, half)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]

    def whole(place: Path) -> None:
        (place / "a.txt").write_text("new")
        (place / "b.txt").write_text("too")
        (place / "scraps").mkdir()

    assert move_in(tmp_path, whole) == ["a.txt", "b.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"
