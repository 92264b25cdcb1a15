from __future__ import annotations

from pathlib import Path

import pytest

from forgetkit.whole_files import written_whole


def test_a_file_takes_the_place_of_another_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    for text in ("first", "second"):
        with written_whole(target) as partial:
            partial.write_text(text)
            assert partial.parent == target.parent
        assert target.read_text() == text
    assert [file.name for file in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_breaks_off_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(type(error)), written_whole(target) as partial:  # noqa: PT012
        partial.write_text("half")
        raise error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), written_whole(tmp_path / "a") as partial:  # noqa: PT012
        partial.mkdir()
        (partial / "file").write_text("half")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []
    with written_whole(tmp_path / "b") as partial:
        partial.mkdir()
        (partial / "file").write_text("whole")
    assert (tmp_path / "b" / "file").read_text() == "whole"
