"""The command line. Results go to stdout, progress and notices to stderr; it never asks."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run `guidedq`.

    Exit codes: 0 done, 1 an error in what was given (one message), 2 wrong usage, 3 a gate that was set was missed, 130
    interrupted.
    """
    import signal
    import sys
    from types import FrameType

    from guidedq.cli.application import application

    def stop(_number: int, _frame: FrameType | None) -> None:
        """A polite kill cleans up as Ctrl-C does."""
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue] - text streams of the process
    application(prog_name="guidedq")
