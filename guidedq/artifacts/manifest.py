"""The manifest of an emitted folder: what is in it, how its weights are stored, and digests by which damage is found.

`manifest.json` holds exactly these keys: `container` (which backend wrote the folder), `version` (of the manifest and
the container), `model` (`name`, `source`, `digest` of the original), `files` (by plain name: `bytes` and `sha256`),
`sites` (in order: `name`, `shape`, `storage`, and `parameters`, all of the model's names for that weight), and `tied`
(other parameters that are stored under another's name).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from guidedq.errors import ArtifactError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
STORAGES = ("out_in", "in_out")
_CHUNK_BYTES = 1 << 20
"""Files are digested a megabyte at a time, so that no file need fit in memory."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEntry:
    """One packed weight.

    Attributes:
        name: Its name in the weights file.
        shape: As the model stores it.
        storage: How that shape maps to the matrix `[out, in]`: `out_in` or `in_out`.
        parameters: Every name that the model has for it (several when it is tied).
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    parameters: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an emitted folder says of itself.

    Attributes:
        container: Which backend wrote it.
        model_name: The original's short name.
        model_source: Which frontend loaded the original.
        model_digest: SHA-256 of the original's content, hex.
        files: By plain name, without the manifest itself.
        sites: The packed weights, in the order in which data reach them.
        tied: Parameters stored under another's name: from name to stored name.
    """

    container: str
    model_name: str
    model_source: str
    model_digest: str
    files: Mapping[str, FileEntry]
    sites: tuple[SiteEntry, ...]
    tied: Mapping[str, str]


def file_entry(path: Path) -> FileEntry:
    """Size and digest of a file as it is now."""
    state = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
            size += len(chunk)
    return FileEntry(bytes=size, sha256=state.hexdigest())


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` into `folder`; the same manifest always gives the same bytes."""
    content = {
        "container": manifest.container,
        "version": MANIFEST_VERSION,
        "model": {"name": manifest.model_name, "source": manifest.model_source, "digest": manifest.model_digest},
        "files": {name: asdict(manifest.files[name]) for name in sorted(manifest.files)},
        **packed_content(manifest.sites, manifest.tied),
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def packed_content(sites: Iterable[SiteEntry], tied: Mapping[str, str]) -> dict[str, Any]:
    """The JSON values of `sites` and `tied`."""
    entries = [{**asdict(site), "shape": list(site.shape), "parameters": list(site.parameters)} for site in sites]
    return {"sites": entries, "tied": dict(sorted(tied.items()))}


def read_packed_content(content: Any, where: str) -> tuple[tuple[SiteEntry, ...], Mapping[str, str]]:
    """Read what `packed_content` wrote, with a `version` beside it, and nothing else.

    Args:
        content: JSON values.
        where: Whence they come, for messages.

    Raises:
        ArtifactError: they are damaged, or of a newer version.
    """
    reader = _Reader(where=where)
    reader.version(content)
    reader.keys(content, "the object", ("version", "sites", "tied"))
    return reader.packed(content)


def read_manifest(folder: Path, container: str) -> Manifest:
    """Read `manifest.json` and check it key by key; the files are checked by `check_files`.

    Args:
        folder: What a backend wrote.
        container: The backend that is to read it.

    Raises:
        ArtifactError: the manifest is missing, damaged, another backend's, or of a newer version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(
            f"{folder} has no {MANIFEST_NAME}: it is no folder that guidedq wrote, or was not finished."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no JSON: {error}. Write the artifact anew.") from error
    reader = _Reader(where=str(path))
    reader.version(content)
    manifest = reader.manifest(content)
    if manifest.container != container:
        raise ArtifactError(f"{folder} was written by the backend {manifest.container!r}, not by {container!r}.")
    return manifest


def check_files(files: Mapping[str, FileEntry], folder: Path, names: Collection[str] | None = None) -> None:
    """Compare files with their sizes and digests: all that are listed, or those of `names` that are.

    Raises:
        ArtifactError: a file is missing, truncated or altered.
    """
    for name, expected in files.items():
        if names is not None and name not in names:
            continue
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing. Copy or write the whole folder anew.")
        size = path.stat().st_size
        if size != expected.bytes:
            raise ArtifactError(f"{path} has {size} bytes, expected {expected.bytes}. Copy or write it anew.")
        if file_entry(path) != expected:
            raise ArtifactError(f"{path} was altered: its SHA-256 is not the recorded one. Copy or write it anew.")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Checks JSON values while it reads them; the error names the file, and which value."""

    where: str

    def expect(self, holds: bool, where: str, expected: str, found: object) -> None:
        """Refuse a value."""
        if not holds:
            shown = repr(found)[:80]
            raise ArtifactError(f"{self.where}: {where}: expected {expected}, found {shown}. Write the artifact anew.")

    def version(self, content: Any) -> None:
        """Refuse what is no object of the version that is read here."""
        self.expect(isinstance(content, dict), "the whole", "an object", content)
        version = content.get("version")
        if type(version) is int and version > MANIFEST_VERSION:
            raise ArtifactError(
                f"{self.where} has version {version}; this guidedq reads up to {MANIFEST_VERSION}. Install a newer one."
            )
        self.expect(version == MANIFEST_VERSION, "version", f"the number {MANIFEST_VERSION}", version)

    def manifest(self, content: Any) -> Manifest:
        self.keys(content, "the manifest", ("container", "version", "model", "files", "sites", "tied"))
        self.keys(content["model"], "model", ("name", "source", "digest"))
        self.expect(isinstance(content["files"], dict), "files", "an object", content["files"])
        sites, tied = self.packed(content)
        return Manifest(
            container=self._text(content["container"], "container"),
            model_name=self._text(content["model"]["name"], "model.name"),
            model_source=self._text(content["model"]["source"], "model.source"),
            model_digest=self._text(content["model"]["digest"], "model.digest"),
            files={self._file_name(name): self._file(values) for name, values in content["files"].items()},
            sites=sites,
            tied=tied,
        )

    def packed(self, content: Any) -> tuple[tuple[SiteEntry, ...], Mapping[str, str]]:
        """The values of `sites` and `tied`."""
        self.expect(isinstance(content["sites"], list), "sites", "a list", content["sites"])
        self.expect(isinstance(content["tied"], dict), "tied", "an object", content["tied"])
        sites = tuple(self._site(values) for values in content["sites"])
        names = [name for site in sites for name in site.parameters]
        self.expect(len(set(names)) == len(names), "sites", "every parameter once", names)
        tied = {name: self._text(stored, "tied") for name, stored in content["tied"].items()}
        apart = not {*tied, *tied.values()} & set(names) and not set(tied) & set(tied.values())
        self.expect(apart, "tied", "names of no site, each stored or tied", tied)
        return sites, tied

    def _site(self, values: Any) -> SiteEntry:
        self.keys(values, "sites", ("name", "shape", "storage", "parameters"))
        name, shape, storage, parameters = (values[key] for key in ("name", "shape", "storage", "parameters"))
        self.expect(
            isinstance(shape, list) and len(shape) >= 2 and all(type(size) is int and size > 0 for size in shape),
            "sites.shape",
            "two or more positive numbers",
            shape,
        )
        self.expect(storage in STORAGES, "sites.storage", " or ".join(STORAGES), storage)
        self.expect(isinstance(parameters, list) and bool(parameters), "sites.parameters", "names", parameters)
        return SiteEntry(
            name=self._text(name, "sites.name"),
            shape=tuple(shape),
            storage=storage,
            parameters=tuple(self._text(parameter, "sites.parameters") for parameter in parameters),
        )

    def _file(self, values: Any) -> FileEntry:
        self.keys(values, "files", ("bytes", "sha256"))
        self.expect(type(values["bytes"]) is int and values["bytes"] >= 0, "files.bytes", "a size", values["bytes"])
        return FileEntry(bytes=values["bytes"], sha256=self._text(values["sha256"], "files.sha256"))

    def _file_name(self, name: str) -> str:
        """A name that cannot lead out of the folder."""
        plain = name not in ("", ".", "..") and not set(name) & set("/\\:\0")
        self.expect(plain, "files", "plain file names", name)
        return name

    def keys(self, values: Any, where: str, keys: tuple[str, ...]) -> None:
        """Refuse an object that has other keys."""
        self.expect(isinstance(values, dict) and set(values) == set(keys), where, f"exactly {', '.join(keys)}", values)

    def _text(self, value: Any, where: str) -> str:
        self.expect(isinstance(value, str) and bool(value), where, "a text", value)
        return value
