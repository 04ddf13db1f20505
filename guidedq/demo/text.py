"""The demo's text: the standard library of the running Python, so that no text is shipped.

A document is the source of one module, or one topic of Python's built-in documentation
(`pydoc_data.topics`). A document's split depends on the name of its module alone, so a module
keeps its split from one Python version to the next, and no module is in two splits.
"""

import hashlib
import importlib
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, cast

from guidedq.errors import CalibrationError

DemoSplit = Literal["train", "calibration", "evaluation"]

_TOPICS_MODULE = "pydoc_data.topics"

# Third-party packages, tests, vendored wheels, and modules that are tables rather than text.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload", "encodings"}
)
_SKIPPED_MODULES = frozenset({_TOPICS_MODULE, "html.entities", "stringprep", "lib2to3.pgen2.token"})
# Written when Python is built: they hold the paths of the build machine.
_BUILD_RECORD_PREFIX = "_sysconfigdata"

# A tenth of the modules is held out for evaluation and another tenth for calibration.
_BUCKETS = 10
_SPLIT_OF_BUCKET: Mapping[int, DemoSplit] = {0: "evaluation", 1: "calibration"}


def demo_text(split: DemoSplit) -> list[str]:
    """Return the documents of one split: modules ordered by name, then documentation topics.

    The demo model was trained on `train` alone. The three splits share no module.

    Raises:
        CalibrationError: this Python carries no source of its standard library.
    """
    documents = [_source(path) for module, path in sorted(_module_paths()) if split_of_module(module) == split]
    if split_of_module(_TOPICS_MODULE) == split:
        documents += _topics()
    documents = [document for document in documents if document.strip()]
    if not documents:
        folder = _standard_library()
        raise CalibrationError(
            f"no Python sources under {folder}: the demo reads its text from the standard library. "
            "Install a Python that carries its sources, or pass your own text."
        )
    return documents


def split_of_module(module: str) -> DemoSplit:
    """Return the split of a module from a hash of its dotted name, the same on every machine.

    A module and its pure Python twin (`decimal`, `_pydecimal`) share their split: newer versions
    moved whole sources from the one to the other.
    """
    twin = module.removesuffix(".__init__").removeprefix("_py")
    digest = hashlib.sha256(twin.encode()).digest()
    return _SPLIT_OF_BUCKET.get(int.from_bytes(digest[:8], "big") % _BUCKETS, "train")


def _module_paths() -> Iterator[tuple[str, Path]]:
    root = _standard_library()
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts)
        skipped = module in _SKIPPED_MODULES or module.startswith(_BUILD_RECORD_PREFIX)
        if not skipped and _SKIPPED_FOLDERS.isdisjoint(parts):
            yield module, path


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _source(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


def _topics() -> list[str]:
    """Return the documentation topics, or none where a distribution ships Python without them."""
    try:
        module = importlib.import_module(_TOPICS_MODULE)
    except ModuleNotFoundError:
        return []
    topics = cast(Mapping[str, str], module.topics)
    return [topics[name] for name in sorted(topics)]
