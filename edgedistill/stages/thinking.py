"""A student that always thinks, or never: the switch of its chat template, set for good.

Templates of models that can do both look at `enable_thinking`. Set inside of the template, it holds wherever the
student answers: in training, in the GGUF, in llama-server and in Ollama, which would each set it their own way.
"""

from __future__ import annotations

from pathlib import Path

from ..chat import ChatTemplate, folder_template
from ..errors import InvalidInput
from ..models import cache_root, locked
from ..records import digest
from ..run import whole_folder, write_whole

__all__ = ["require_switch", "switched"]

SWITCH = "enable_thinking"
TEMPLATE = "chat_template.jinja"


def require_switch(template: ChatTemplate, thinking: bool | None) -> str:
    """What the student does, as found; "" where its template decides. Raises InvalidInput where it has no switch."""
    if thinking is None:
        return ""
    if SWITCH not in template.source:
        raise InvalidInput(
            f"student.thinking = {str(thinking).lower()}: the student's chat template has no switch for thinking",
            f"Leave student.thinking out, or take a student whose template knows {SWITCH}.",
        )
    return f"; it thinks {'always' if thinking else 'never'}"


def switched(base: Path, thinking: bool) -> Path:
    """A folder in the cache with the files of a base, and with its template's switch set.

    Raises InvalidInput where the template has none.
    """
    template = folder_template(base)
    require_switch(template, thinking)
    source = f"{{%- set {SWITCH} = {str(thinking).lower()} %}}{template.source}"
    folder = cache_root() / "switched" / digest(str(base.resolve()), source)[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not folder.is_dir():
            with whole_folder(folder) as new:
                for path in base.iterdir():
                    if path.name != TEMPLATE:
                        (new / path.name).symlink_to(path.resolve())
                write_whole(new / TEMPLATE, source.encode())
    return folder
