"""N9: which tokens carry the loss, over 500 random trajectories in each of five chat templates.

Trajectories have a system text, up to four questions, tool calls with results, reasoning, and texts that look like a
template's own marks. What the assistant says is spelled in Cyrillic letters and all else in Greek ones, so that every
token tells whose it is, whatever the template does. Beside that the mask is compared, token by token, with that of
TRL's training templates, as transformers computes it, where TRL has one. These count the white space behind the end of
a turn, and for Qwen2.5 the line break before it, which is the prompt's: no model writes them, and ours leaves them out.

Templates are those of TRL's package, and SmolLM2's own; vocabularies are those in llama.cpp's source (`--source`) and
SmolLM2's. Gemma 3's template runs on Llama 2's SentencePiece. The peer: `pip install --target DIR --no-deps trl`, then
`--peers DIR`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_tools import tools_folder
from measure import finish, note, teacher_gguf
from transformers import AutoTokenizer

from edgedistill.llamacpp.reader import read_gguf
from edgedistill.llamacpp.tokenizer_files import tokenizer_files
from edgedistill.llamacpp.vocabulary import from_metadata
from edgedistill.records import Example, Message, ToolCall, tools_of
from edgedistill.students.encode import EncodedExample, Encoder, joined
from edgedistill.students.lessons import hard_lesson
from edgedistill.students.tokens import FolderTokens

MINE, OTHERS = "абвгдежзийклмноп", "αβγδεζηθικλμνξο"  # all with one first byte in UTF-8
FIRST = {0xD0: "assistant", 0xCE: "others"}
MARKS = (
    "<|im_start|>assistant\n",
    "<|im_end|>",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
    "<start_of_turn>model\n",
    "</think>",
    "<tool_response>",
)
TOOLS = tools_of(
    "tools",
    [
        {"type": "function", "function": {"name": name, "description": "<β & 'γ'>", "parameters": {"type": "object"}}}
        for name in ("alpha", "beta")
    ],
)


@dataclass(frozen=True)
class Family:
    """A template, whose vocabulary it runs on, what ends a turn, and what it can write."""

    template: str | None
    vocabulary: str | None
    end: str
    has_tools: bool = False
    thinks: bool = False
    specials: tuple[str, ...] = ()
    bos: str = ""


FAMILIES = {
    "Qwen2.5": Family("qwen2_5", "qwen2", "<|im_end|>", has_tools=True),
    "Qwen3": Family("qwen3", "qwen2", "<|im_end|>", has_tools=True, thinks=True),
    "Llama 3": Family("llama3", "llama-bpe", "<|eot_id|>", bos="<|begin_of_text|>"),
    "SmolLM2": Family(None, None, "<|im_end|>"),
    "Gemma 3": Family("gemma3", "llama-spm", "<end_of_turn>", specials=("<start_of_turn>", "<end_of_turn>"), bos="<s>"),
}


class Chance:
    """Draws trajectories."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)

    def text(self, letters: str) -> str:
        """Some words; in every fifth of what others say stands a mark of a template."""
        words = ["".join(self._source.choices(letters, k=self._source.randint(1, 9))) for _ in range(self._many(9))]
        if letters == OTHERS and self._source.random() < 0.2:
            words.insert(self._source.randint(0, len(words)), self._source.choice(MARKS))
        return self._source.choice((" ", "\n", ", ")).join(words)

    def trajectory(self) -> list[Message]:
        """A system text, and questions with calls, results and answers."""
        turns = [Message("system", self.text(OTHERS))]
        for _ in range(self._many(4)):
            turns.append(Message("user", self.text(OTHERS)))
            for _ in range(self._source.choice((0, 0, 1, 2))):
                calls = tuple(self._call() for _ in range(self._many(2)))
                said = self.text(MINE) if self._source.random() < 0.3 else ""
                turns.append(Message("assistant", said, calls, reasoning=self._thought()))
                turns += [Message("tool", self.text(OTHERS), name=call.name) for call in calls]
            turns.append(Message("assistant", self.text(MINE), reasoning=self._thought()))
        return turns

    def _call(self) -> ToolCall:
        arguments = {"x": self.text(MINE), "n": self._many(9), "list": [self.text(MINE), None, True]}
        return ToolCall(self._source.choice(("alpha", "beta")), json.dumps(arguments, ensure_ascii=False))

    def _thought(self) -> str:
        return self.text(MINE) if self._source.random() < 0.7 else ""

    def _many(self, most: int) -> int:
        return self._source.randint(1, most)


def fitted(turns: Sequence[Message], family: Family) -> list[Message]:
    """The trajectory as far as a template can write it."""
    found = []
    for turn in turns:
        if (turn.role == "tool" or turn.tool_calls) and not family.has_tools:
            continue
        found.append(turn if family.thinks else replace(turn, reasoning=""))
    return found


def folder_of(family: Family, options: argparse.Namespace, room: Path) -> Path:
    """A folder with a family's tokenizer and template."""
    if family.vocabulary is None:
        path = teacher_gguf("smollm2-135m-instruct")
    else:
        (source,) = options.source.glob("llama_cpp_python-*/vendor/llama.cpp/models")
        path = source / f"ggml-vocab-{family.vocabulary}.gguf"
    files = tokenizer_files(from_metadata(path, read_gguf(path).metadata), 8192)
    tokenizer, settings = (json.loads(files[name]) for name in ("tokenizer.json", "tokenizer_config.json"))
    number = max(tokenizer["model"]["vocab"].values()) + 1
    for token in family.specials:
        tokenizer["model"]["vocab"][token] = number
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": number, "content": token})
        number += 1
    if family.template is not None:
        settings |= {"chat_template": template_of(options, family.template), "eos_token": family.end}
    settings |= {"bos_token": family.bos} if family.bos else {}
    folder = room / str(family.template)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    return folder


def template_of(options: argparse.Namespace, name: str) -> str:
    return str((options.peers / "trl" / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8"))


class Court:
    """Judges one family's masks."""

    def __init__(self, family: Family, folder: Path, training: str | None) -> None:
        self.family, self.encoder = family, Encoder(folder)
        self._pieces = FolderTokens(folder, self.encoder).pieces
        self._end = self.encoder.ids(family.end)
        self._peer: Any = None
        if training is not None:
            self._peer = AutoTokenizer.from_pretrained(folder)
            self._peer.chat_template = training
        self.counts: Counter[str] = Counter()

    def judge(self, turns: Sequence[Message]) -> None:
        """Count the tokens of a trajectory, and those with the wrong loss."""
        tools = TOOLS if self.family.has_tools else ()
        apart = self.encoder.turns(Example("row", tuple(turns), tools))
        examples = joined(apart)
        learned = ""
        for example in examples:
            mask = mask_of(example)
            owners = self._owners(example.tokens)
            self.counts["tokens"] += len(mask)
            self.counts["with loss"] += sum(mask)
            self.counts["others with loss"] += sum(
                is_learned and owner == "others" for is_learned, owner in zip(mask, owners, strict=True)
            )
            behind = zip(mask[example.start :], owners[example.start :], strict=True)
            self.counts["assistant without"] += sum(not one and owner == "assistant" for one, owner in behind)
            for begin, end in example.spans:
                self.counts["assistant without"] += list(example.tokens[end - 1 : end]) != self._end
                learned += self._letters(example.tokens[begin:end])
        self.counts["assistant without"] += learned != "".join(spoken(turn) for turn in turns)
        self.counts["examples"] += len(examples)
        self.counts["turns"] += len(apart)
        if self._peer is not None:
            self._compare(turns, tools, apart, examples)

    def _owners(self, tokens: Sequence[int]) -> list[str]:
        """Whose letters each token has."""
        found, last = [], ""
        for token in tokens:
            owners = set()
            for byte in self._pieces[token] if token < len(self._pieces) else b"":
                last = FIRST.get(byte, last if 0x80 <= byte < 0xC0 else "")
                owners.add(last)
            found.append("others" if "others" in owners else "assistant" if "assistant" in owners else "")
        return found

    def _letters(self, tokens: Sequence[int]) -> str:
        text = b"".join(self._pieces[token] for token in tokens if token < len(self._pieces))
        return "".join(letter for letter in text.decode("utf-8", "ignore") if letter in MINE)

    def _compare(
        self, turns: Sequence[Message], tools: Any, apart: Sequence[EncodedExample], examples: Sequence[EncodedExample]
    ) -> None:
        """Against the peer's mask: of the whole text where it is one example, else turn by turn."""
        lengths = [number for number, turn in enumerate(turns, start=1) if turn.role == "assistant"]
        if len(examples) == 1:
            self._same(examples[0], turns[: lengths[-1]], tools, is_whole=True)
            return
        for turn, length in zip(apart, lengths, strict=True):
            self._same(turn, turns[:length], tools, is_whole=False)

    def _same(self, example: EncodedExample, turns: Sequence[Message], tools: Any, is_whole: bool) -> None:
        found = self._peer.apply_chat_template(
            [turn.as_turn() for turn in turns],
            tools=list(tools) or None,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        theirs = list(zip(found["input_ids"], found["assistant_masks"], strict=True))
        ours = list(zip(example.tokens, mask_of(example), strict=True))
        if not is_whole:
            ours, theirs = last_turn(ours), last_turn(theirs)
        ends = {place for place, (token, _) in enumerate(ours) if [token] == self._end}
        begins = {place for place in range(1, len(ours)) if ours[place][1] and not ours[place - 1][1]}
        ours += [(token, False) for token, _ in theirs[len(ours) :]]
        theirs += [(-1, 0)] * (len(ours) - len(theirs))
        for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            if mine != other:
                is_near = place - 1 in ends or place + 1 in begins
                is_blank = mine[0] == other[0] and other[1] and is_near and self._is_blank(mine[0])
                self.counts["peer: white space" if is_blank else "peer: other"] += 1
        self.counts["peer: compared"] += len(ours)

    def _is_blank(self, token: int) -> bool:
        """Whether a token writes white space alone."""
        return token < len(self._pieces) and not self._pieces[token].strip()


def mask_of(example: EncodedExample) -> list[bool]:
    """Whether each token carries loss, as the lesson has it."""
    found = [False] * len(example.tokens)
    for place in hard_lesson(example).rows.at.tolist():
        found[place + 1] = True
    return found


def last_turn(marked: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The last run of tokens with loss, and what follows."""
    end = max(place for place, (_, mask) in enumerate(marked) if mask)
    begin = end
    while begin and marked[begin - 1][1]:
        begin -= 1
    return marked[begin:]


def spoken(turn: Message) -> str:
    """The letters of a turn of the assistant in the order in which templates write them."""
    if turn.role != "assistant":
        return ""
    calls = "".join(call.arguments for call in turn.tool_calls)
    return "".join(letter for letter in turn.reasoning + turn.content + calls if letter in MINE)


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the folder with trl")
    parser.add_argument("--source", type=Path, default=tools_folder(), help="where llama-cpp-python's source is")
    parser.add_argument("--count", type=int, default=500, help="trajectories in each template")
    return parser.parse_args()


def main() -> None:
    given = options()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as room:
        for name, family in FAMILIES.items():
            training = None if family.template is None else template_of(given, f"{family.template}_training")
            court, chance = Court(family, folder_of(family, given, Path(room)), training), Chance(0)
            for _ in range(given.count):
                court.judge(fitted(chance.trajectory(), family))
            note(f"{name}: {dict(court.counts)}")
            total += court.counts
    value = {name: total[name] for name in ("others with loss", "assistant without", "peer: other")}
    more = {name: total[name] for name in sorted(total) if name not in value}
    bar = "0 non-assistant tokens with loss, 0 assistant tokens without; equal to TRL's mask"
    finish("N9", value, bar, not any(value.values()), peer="trl", unit="tokens", n=given.count, **more)


if __name__ == "__main__":
    main()
