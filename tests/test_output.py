from pathlib import Path

import pytest

from guidedq.errors import BudgetError, OutputError
from guidedq.output import check_output, new_folder


def write(out: Path, text: str, *, overwrite: bool = False) -> None:
    with new_folder(out, overwrite=overwrite) as folder:
        (folder / "file").write_text(text)


def test_a_folder_appears_whole_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "down" / "out"
    with new_folder(out, overwrite=False) as folder:
        (folder / "file").write_text("new")
        assert not out.exists()
        assert folder.parent == out.parent
    assert (out / "file").read_text() == "new"
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [BudgetError("ours"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_nothing_is_left_after_a_failure(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with (
        pytest.raises(OutputError, match=r"cannot write .*out: No space left"),
        new_folder(tmp_path / "out", overwrite=False),
    ):
        raise full
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    (out / "other").write_text("old")
    write(out, "new", overwrite=True)
    assert [path.name for path in out.iterdir()] == ["file"]
    assert (out / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(RuntimeError), new_folder(out, overwrite=True) as folder:
        (folder / "file").write_text("new")
        assert (out / "file").read_text() == "old"
        raise RuntimeError
    assert (out / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_an_existing_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_a_folder_with_something_in_it_is_refused_unless_told(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(tmp_path, overwrite=False)
    check_output(tmp_path, overwrite=True)


def test_a_file_is_refused_even_when_told(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(OutputError, match="is a file"):
        check_output(path, overwrite=True)


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "file" / "out", "new")
