"""The result of a policy as JUnit XML, which every pipeline can show."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from guidedq.errors import OutputError
from guidedq.files import write_text
from guidedq.report.policy import PolicyResult

SUITE = "guidedq"
FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def junit_text(result: PolicyResult) -> str:
    """One test suite; every demand of the policy is a test case, the digests are its properties."""
    report = result.report
    counts = {"tests": str(len(result.checks)), "failures": str(sum(not check.met for check in result.checks))}
    root = ElementTree.Element("testsuites", {"name": SUITE, **counts})
    named = {"name": _plain(f"{SUITE} check {report.model.name} at {report.budget.asked}"), "errors": "0"}
    suite = ElementTree.SubElement(root, "testsuite", {**named, "skipped": "0", **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for name, digest in report.digests.items():
        ElementTree.SubElement(properties, "property", {"name": f"sha256.{name}", "value": _plain(digest)})
    for check in result.checks:
        case = {"classname": _plain(f"{SUITE}.{report.model.name}"), "name": _plain(check.name)}
        element = ElementTree.SubElement(suite, "testcase", case)
        if check.met:
            ElementTree.SubElement(element, "system-out").text = _plain(check.found)
        else:
            ElementTree.SubElement(element, "failure", {"type": "policy", "message": _plain(check.found)})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def check_junit(path: Path) -> None:
    """Refuse a file that could not be written.

    Raises:
        OutputError: its folder does not exist, or it is one.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: expected a file in a folder that exists.")


def write_junit(result: PolicyResult, path: Path) -> None:
    """Write `junit_text`.

    Raises:
        OutputError: it cannot be written.
    """
    check_junit(path)
    try:
        write_text(path, junit_text(result))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error


def _plain(text: str) -> str:
    return FORBIDDEN.sub("?", text)
