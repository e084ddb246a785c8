"""The tokens that end an answer, and which of them llama.cpp has to be told.

llama.cpp finds ends by their names (src/llama-vocab.cpp), and takes any one as the end of turn where a vocabulary has
several. What it would not find, or not surely, is named in the file.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..chat import ChatTemplate
from ..errors import InvalidInput

__all__ = ["end_tokens"]

TURN_ENDS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    )
)
"""The names of which one becomes the end of turn."""

OTHER_ENDS = frozenset(("<|return|>", "<|call|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>", "<turn|>"))


def end_tokens(
    tokens: Sequence[str],
    controls: dict[str, int],
    ids: dict[str, int],
    stated: Sequence[int],
    template: tuple[str | None, dict[str, str]],
) -> dict[str, int]:
    """The ids of `eot` and `eom` as far as they must be named.

    `controls` are the ids of control tokens by name, `ids` those by role, `stated` all that a config calls an end,
    `template` the chat template and the names of bos and eos.
    """
    found: dict[str, int] = {}
    turn = _answer_end(template, controls)
    candidates = [controls[name] for name in TURN_ENDS if name in controls]
    if turn is not None and candidates != [turn] and (candidates or turn != ids.get("eos")):
        found["eot"] = turn
    known = {*ids.values(), *found.values()}
    for number in stated:
        if number < len(tokens) and number not in known and tokens[number] not in TURN_ENDS | OTHER_ENDS:
            found.setdefault("eom", number)
    return found


def _answer_end(template: tuple[str | None, dict[str, str]], controls: dict[str, int]) -> int | None:
    """The control token that the chat template puts last behind an answer; None where there is none."""
    source, names = template
    if not source:
        return None
    try:
        after = ChatTemplate(source, names.get("bos", ""), names.get("eos", "")).sample_answer()
    except InvalidInput:  # a template for other conversations; the proof will say so
        return None
    places = [(after.rfind(name) + len(name), len(name), number) for name, number in controls.items() if name in after]
    return max(places)[2] if places else None
