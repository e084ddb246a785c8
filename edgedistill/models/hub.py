"""Model files from the hub, at a pinned commit, through the hub's own cache.

The hub's client checks a file's size only: here its content is held against the hash that the hub states for that
commit, when it comes and again whenever it is taken from the cache (where files are named by their hash).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, MissingRequirement, Stopped, Unsafe
from ..explain import did_you_mean
from ..run import Progress, no_room, stop_if_asked, write_whole
from .content import FOLDER_FILES, PAPERS, file_content, plain_text

__all__ = [
    "HubFile",
    "HubRepo",
    "cached_file",
    "cached_folder",
    "check_hash",
    "describe",
    "fetch_files",
    "folder_files",
    "go_offline",
    "snapshot_of",
    "stated_sha256",
]

PROBE_SECONDS = 3.0
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file's size and hash: `sha256` for a large file, `git_sha1` (of its git blob) for a small one."""

    size_bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository as it is at one commit."""

    repo: str
    commit: str
    licence: str | None
    files: dict[str, HubFile]

    def file(self, name: str) -> HubFile:
        """One of its files; InvalidInput that suggests another where it has none of that name."""
        if name not in self.files:
            known = [file for file in self.files if file.endswith(Path(name).suffix)]
            raise InvalidInput(
                f"{self.repo}: has no file {name}{did_you_mean(name, known)}",
                f"It has {', '.join(known) or 'none of that kind'}.",
            )
        return self.files[name]


def go_offline() -> None:
    """Keep the hub's client, here and in child processes, from the network. Effective before it is first imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _quiet()


def _quiet() -> None:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"


_silent = False


@lru_cache(maxsize=64)
def describe(repo: str) -> HubRepo | None:
    """The repository's newest commit, or None where the hub does not answer within a few seconds.

    Once the hub has not answered, it is not asked again by this process. Raises InvalidInput for a name that the hub
    does not know.
    """
    global _silent
    if _silent:
        return None
    _quiet()
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        info = HfApi().model_info(repo, files_metadata=True, timeout=PROBE_SECONDS)
    except HFValidationError as error:
        raise InvalidInput(f"{repo}: not a name that the hub can have", "Write org/repo.") from error
    except RepositoryNotFoundError as error:
        raise InvalidInput(
            f"{repo}: not on the hub, or not for you to see", "Check the name; if it is private, log in: hf auth login"
        ) from error
    except (HTTPError, OfflineModeIsEnabled, ValueError, TypeError, KeyError):
        # Down, out of reach, forbidden on the way, or something that is not a hub answers there.
        _silent = True
        return None
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise Unsafe(f"{repo}: the hub states no commit", "Check HF_ENDPOINT.")
    return HubRepo(repo, info.sha, _card_licence(info.card_data), {f.rfilename: _file(f) for f in info.siblings or []})


def _file(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    return HubFile((lfs.size if lfs else sibling.size) or 0, lfs.sha256 if lfs else None, sibling.blob_id)


def _card_licence(card: Any) -> str | None:
    if card is None:
        return None
    licence = card.get("license")
    if licence == "other":
        licence = card.get("license_name") or licence
    if isinstance(licence, list):
        licence = " AND ".join(str(item) for item in licence)
    return plain_text(licence)


def folder_files(info: HubRepo) -> dict[str, HubFile]:
    """The files that a Hugging Face folder needs: weights, configuration, tokenizer, papers.

    Raises Unsafe where the weights are there only in a format that can run code, InvalidInput where a file is missing.
    """
    files = {name: file for name, file in sorted(info.files.items()) if "/" not in name and _allowed(name)}
    if not any(name.endswith(".safetensors") for name in files):
        if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in info.files):
            raise Unsafe(f"{info.repo}: its weights are pickles, which can run code", "Use one that has safetensors.")
        raise InvalidInput(f"{info.repo}: has no safetensors", "Give a repository of a whole model in 16 bits.")
    for name in ("config.json", "tokenizer.json"):
        if name not in files:
            raise InvalidInput(f"{info.repo}: has no {name}", "Give a repository of a whole model in 16 bits.")
    return files


def _allowed(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in FOLDER_FILES + PAPERS)


def cached_file(repo: str, name: str) -> Path | None:
    """The file in the hub's cache, of the commit that was fetched last, or None."""
    folder = _snapshot(repo)
    return folder / name if folder and (folder / name).is_file() else None


def cached_folder(repo: str) -> Path | None:
    """The repository's folder in the hub's cache if its weights, configuration and tokenizer are there, or None."""
    folder = _snapshot(repo)
    if folder is None or not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(re.findall(r'"([^"/\\]+\.safetensors)"', index.read_text(encoding="utf-8", errors="replace")))
        return folder if all((folder / shard).is_file() for shard in shards) else None
    return folder if any(folder.glob("*.safetensors")) else None


def snapshot_of(path: Path, name: str | None) -> Path:
    """The commit's folder that a cached folder is, or that a cached file of that name lies in."""
    return path if name is None else path.parents[name.count("/")]


def stated_sha256(path: Path) -> str | None:
    """The sha256 that the cache names a large file by, or None where it tells none."""
    blob = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None


def _snapshot(repo: str) -> Path | None:
    """The folder of the commit that the cache knows as the repository's newest."""
    ref = _cache(repo) / "refs" / "main"
    try:
        commit = ref.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    folder = _cache(repo) / "snapshots" / commit
    return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def _cache(repo: str) -> Path:
    _quiet()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def fetch_files(info: HubRepo, names: list[str], progress: Progress) -> Path:
    """The folder in the hub's cache that holds these files of the commit, each with the hash that the hub states.

    Raises InvalidInput for a file that the repository has not, MissingRequirement for a gated one, Unsafe where the
    content is not what the hub states (the file is removed), Stopped where the download was cut.
    """
    total = sum(info.file(name).size_bytes for name in names)
    done = 0
    for name in names:
        stop_if_asked()
        path = Path(_download(info, name, _bar(progress, info.repo, done, total)))
        check_hash(path, info.file(name))
        done += info.file(name).size_bytes
        progress(f"download {info.repo}", done, total)
    # Last of all: from here on the commit counts as cached, whole.
    write_whole(_cache(info.repo) / "refs" / "main", info.commit.encode())
    return _cache(info.repo) / "snapshots" / info.commit


def _download(info: HubRepo, name: str, bar: type[Any]) -> str:
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError

    try:
        return hf_hub_download(info.repo, name, revision=info.commit, tqdm_class=bar)
    except GatedRepoError as error:
        raise MissingRequirement(
            f"{info.repo}: its owners ask you to agree to their terms first", "Do so on its page, then: hf auth login"
        ) from error
    except (HTTPError, EntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise no_room(_cache(info.repo), error) from error
        why = " ".join(str(error).split())[:200]
        raise Stopped(f"{info.repo}: the download of {name} was cut ({why})", "Run the same command again.") from error


def _bar(progress: Progress, repo: str, before: int, total: int) -> type[Any]:
    """A stand-in for the bar that the hub's client draws, which reports to `progress` instead."""

    class Bar:
        format_dict: dict[str, Any] = {}  # noqa: RUF012 - read by the client, never written

        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            self.n, self.total = initial, kwargs.get("total")

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            stop_if_asked()
            self.n += int(count or 0)
            progress(f"download {repo}", min(before + self.n, total), total)

        def update_transfer(self, count: float) -> None:
            pass

        def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
            pass

        def refresh(self) -> None:
            pass

        def close(self) -> None:
            pass

    return Bar


def check_hash(path: Path, file: HubFile | None = None) -> None:
    """Nothing where a file of the hub's cache has the stated hash, or the hash that the cache names it by.

    Raises Unsafe, and removes the file from the cache, where it has not.
    """
    blob = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    sha256 = file.sha256 if file else stated_sha256(path)
    git_sha1 = file.git_sha1 if file else (blob if len(blob) == 40 else None)
    if sha256 is not None:
        whole, found = sha256, file_content(path)
    elif git_sha1 is not None:
        whole, found = git_sha1, _git_sha1(path)
    else:
        return
    if found != whole:
        _remove(path)
        raise Unsafe(
            f"{path.name}: its hash is {found}, the hub says {whole}; it was removed from the cache",
            "Run the same command again; if it happens again, do not use this source.",
        )


def _git_sha1(path: Path) -> str:
    """The name that git gives to a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file of the cache: the name in the snapshot, and the blobs it leads to."""
    while True:
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target
