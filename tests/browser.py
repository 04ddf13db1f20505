"""A headless Chromium, spoken to over its debugging pipe, so that tests see what users see.

Messages are JSON with a zero byte behind: the browser reads them on file descriptor 3 and answers on 4
(https://chromedevtools.github.io/devtools-protocol). Needs nothing but the browser.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")
GIVE = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
"""Starts a command with two descriptors as its 3 and 4."""
PATIENCE_SECONDS = 120.0
"""A busy machine takes its time to start a browser."""
FREE_DESCRIPTOR = 10
"""Pipes are moved here and beyond, so that 3 and 4 can be given to the browser."""


@dataclass(frozen=True)
class Seen:
    """What became of a page: every address asked for after its own, all complaints, and what a script found."""

    address: str
    requests: list[str]
    complaints: list[str]
    found: dict[str, Any]


@dataclass
class Browser:
    """One process. Answers and events come on one pipe; events wait in `events` until they are asked for."""

    write: int
    read: int
    number: int = 0
    text: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)

    def open(self, page: Path, width: int, script: str) -> Seen:
        """Navigate to a file in a window of this width, wait until it is loaded, and evaluate a script there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **screen)
        self.events.clear()
        self.call("Page.navigate", session, url=page.as_uri())
        self.wait(lambda: any(event["method"] == "Page.loadEventFired" for event in self.events))
        answer = self.call("Runtime.evaluate", session, expression=script, returnByValue=True)
        address = self.call("Runtime.evaluate", session, expression="location.href", returnByValue=True)
        seen = Seen(
            address=address["result"]["value"],
            requests=[event["params"]["request"]["url"] for event in self.events if _asks(event)][1:],
            complaints=[json.dumps(event["params"]) for event in self.events if _complains(event)],
            found=answer["result"]["value"],
        )
        self.call("Target.closeTarget", targetId=target)
        return seen

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(self.write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        answers: list[dict[str, Any]] = []
        self.wait(lambda: bool(answers), answers)
        assert "error" not in answers[0], answers[0]
        return answers[0]["result"]

    def wait(self, done: Callable[[], bool], answers: list[dict[str, Any]] | None = None) -> None:
        """Read messages until something holds: answers to the last command into `answers`, all others to `events`."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not done():
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self.read, 1 << 16)
            assert part, "the browser is gone"
            *messages, self.text = (self.text + part).split(b"\0")
            for message in map(json.loads, messages):
                if "method" in message:
                    self.events.append(message)
                elif answers is not None and message["id"] == self.number:
                    answers.append(message)


@contextmanager
def browser(profile: Path) -> Generator[Browser]:
    """Start one, and end it."""
    theirs_read, our_write = _pipe()
    our_read, theirs_write = _pipe()

    descriptors = [str(theirs_read), str(theirs_write)]
    command = [sys.executable, "-c", GIVE, *descriptors, str(BROWSER), *OPTIONS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(theirs_read, theirs_write)
    )
    os.close(theirs_read)
    os.close(theirs_write)
    try:
        yield Browser(write=our_write, read=our_read)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        os.close(our_write)
        os.close(our_read)


def _pipe() -> tuple[int, int]:
    made = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FREE_DESCRIPTOR) for end in made]
    for end in made:
        os.close(end)
    return moved[0], moved[1]


def _asks(event: dict[str, Any]) -> bool:
    return event["method"] == "Network.requestWillBeSent" and not event["params"]["request"]["url"].startswith("data:")


def _complains(event: dict[str, Any]) -> bool:
    return event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
