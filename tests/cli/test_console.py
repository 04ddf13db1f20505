import io
import sys
import warnings

import pytest

from guidedq.cli import console as console_module
from guidedq.cli.console import ConsoleProgress, print_facts, print_table, working


def test_elsewhere_than_on_a_terminal_every_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress() as progress:
        progress.start("guidance", 3)
        for _ in range(3):
            progress.advance()
        progress.start("sample", 1)
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["guidance", "sample"]
    assert lines[0].startswith("guidance: 3 steps in ")
    assert "\x1b" not in captured.err


def test_a_notice_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress() as progress:
        progress.notice("[mind] the gap")
        progress.notice("[mind] the gap")
    assert capsys.readouterr().err == "[mind] the gap\n"
    assert progress.told == {"[mind] the gap"}


def test_after_an_error_the_unfinished_stage_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), ConsoleProgress() as progress:
        progress.start("curves", 5)
        progress.advance(2)
        raise RuntimeError
    assert capsys.readouterr().err == "curves: 2 of 5, not finished\n"


def test_more_steps_than_announced_leave_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress() as progress:
        progress.start("curves", 2)
        progress.advance(3)
        progress.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with ConsoleProgress() as progress:
        progress.start("guidance", 4)
        progress.advance(2)
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "guidance" in text and "2/4" in text and "left" in text


def test_what_libraries_print_and_warn_never_reaches_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with working():
        print("a library's chatter")
        warnings.warn("a library's warning", UserWarning, stacklevel=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "chatter" in captured.err
    assert "warning" not in captured.err


def test_a_table_prints_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("site", "bits"), [("a[0].b[/c]:smile:", "3.5"), ("d", "12.25")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("a[0].b[/c]:smile:")
    assert lines[2].endswith(" 3.5") and lines[3].endswith("12.25"), "numbers end at the right"


def test_long_lines_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("files", "x" * 500), ("m", "y")])
    assert capsys.readouterr().out == f"files  {'x' * 500}\nm      y\n"


def test_what_the_user_set_in_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "QUIET", {"GUIDEDQ_TEST_A": "1", "GUIDEDQ_TEST_B": "1"})
    monkeypatch.setenv("GUIDEDQ_TEST_A", "mine")
    monkeypatch.setenv("GUIDEDQ_TEST_B", "")
    monkeypatch.delenv("GUIDEDQ_TEST_B")
    with working():
        import os

        assert (os.environ["GUIDEDQ_TEST_A"], os.environ["GUIDEDQ_TEST_B"]) == ("mine", "1")
