"""Find, fetch and vet weights: the catalogue, the hub, packages, local files; the intake gate; licences."""

from __future__ import annotations

from .content import folder_content
from .find import Format, Identity, Weights, fetch, identify
from .gguf_header import GgufHeader
from .intake import check_folder, check_gguf
from .licences import Licence, licence_text, vet_licence
from .packages import cache_root, locked

__all__ = [
    "Format",
    "GgufHeader",
    "Identity",
    "Licence",
    "Weights",
    "cache_root",
    "check_folder",
    "check_gguf",
    "fetch",
    "folder_content",
    "identify",
    "licence_text",
    "locked",
    "vet_licence",
]
