"""A vocabulary: read from a Hugging Face folder or a GGUF, written as the other.

Both sides hold the same things under other names. There are two kinds. In byte-level BPE (GGUF's tokenizer model
'gpt2') ordinary tokens are spelled in GPT-2's byte alphabet on both sides, added ones (`<|im_start|>`) in plain text.
In SentencePiece's BPE ('llama') a mark stands for a space, and bytes that are in no token are tokens of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import GateMissed, InvalidInput
from ..records import read_json
from .end_tokens import end_tokens
from .places import CHECKOUT
from .pretokenizers import SENTENCEPIECE, PreTokenizer, by_name, by_structure, space_prefix
from .sentencepiece import BYTE_TOKEN, SPACE, Piece, merges_by_score, read_pieces, scores_by_merge

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["Vocabulary", "add_to_gguf", "from_folder", "from_metadata", "is_control", "named_for"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of the GGUF specification."""

ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0
"""What llama.cpp's converter gives to tokens that are no piece of the SentencePiece model."""

PHI_3 = ("phi-3", "phi3")
NOT_SWALLOWING = ("<unk>", "<s>", "<|endoftext|>")
"""What llama.cpp excepts; it must be there, and "</s>" too, in a model of that name."""

ROLES = ("bos", "eos", "unk", "pad")
GGUF_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens in the order of their ids, and how text becomes them."""

    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]
    pre: PreTokenizer
    ids: dict[str, int]
    """The ids of bos, eos, unk and pad, of eot and eom besides eos, as far as there are such tokens."""
    add_bos: bool | None = None
    """Whether every text begins with bos; None where the source does not say."""
    add_eos: bool | None = None
    chat_template: str | None = None
    model: Literal["gpt2", "llama"] = "gpt2"
    scores: tuple[float, ...] = ()
    """Of each token, in SentencePiece; the pair that makes the token with the highest is merged first."""
    space_prefix: bool = False
    """Whether, in SentencePiece, a text between special tokens gets a space before it."""
    swallowing: frozenset[int] = frozenset()
    """The tokens that take the white space behind them away."""


def from_folder(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a Hugging Face folder, padded with unused tokens up to `size`, the rows of the embedding.

    Raises GateMissed where llama.cpp would read text as other tokens, InvalidInput where a file does not hold.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    settings = read_json(folder / "tokenizer_config.json", required=False)
    model = _bpe_model(path, tokenizer)
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or []}
    spelled = {number: token for token, number in model["vocab"].items()}
    spelled.update({number: _added_text(entry) for number, entry in added.items()})
    if spelled and max(spelled) >= size:
        raise InvalidInput(
            f"{path}: token id {max(spelled)} is past the embedding's {size} rows", "Resize the model's embeddings."
        )
    tokens = [spelled.get(number, f"[PAD{number}]") for number in range(size)]
    if len(set(tokens)) != size:
        raise InvalidInput(f"{path}: a token is there under two ids", "Fetch the file again.")
    ids = _special_ids(folder, settings, {entry["content"]: number for number, entry in added.items()}, size)
    texts = {role: tokens[number] for role, number in ids.items()}
    add_bos, add_eos = _added_around(path, tokenizer, settings, texts)
    template = _chat_template(folder, settings)
    controls = {entry["content"]: number for number, entry in added.items() if is_control(entry)}
    vocabulary = Vocabulary(
        tokens=tokens,
        types=[_type(number, spelled, added) for number in range(size)],
        merges=[_merge(path, merge, bool(model.get("byte_fallback"))) for merge in model["merges"]],
        pre=SENTENCEPIECE if model.get("byte_fallback") else by_structure(tokenizer),
        ids=ids | end_tokens(tokens, controls, ids, _stated_ends(folder), (template, texts)),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=template,
        swallowing=frozenset(number for number, entry in added.items() if entry.get("rstrip")),
    )
    return _with_scores(folder, vocabulary, tokenizer, added) if model.get("byte_fallback") else vocabulary


def _bpe_model(path: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = tokenizer.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not model.get("vocab"):
        raise GateMissed(f"{path}: not a BPE tokenizer ({model.get('type')})", CHECKOUT)
    if not model.get("byte_fallback"):
        decoder = (tokenizer.get("decoder") or {}).get("type")
        if decoder != "ByteLevel":
            raise GateMissed(f"{path}: the decoder is {decoder}, not ByteLevel", CHECKOUT)
        # llama.cpp does not normalize; NFC changes rare texts only, and its converter drops it for Qwen too.
        normalizer = (tokenizer.get("normalizer") or {"type": "NFC"}).get("type")
        if normalizer != "NFC":
            raise GateMissed(f"{path}: llama.cpp has no normalizer {normalizer}", CHECKOUT)
    added = tokenizer.get("added_tokens") or []
    if (
        not _numbered(model["vocab"])
        or not isinstance(model.get("merges"), list)
        or not isinstance(added, list)
        or not all(isinstance(entry, dict) and _numbered({entry.get("content"): entry.get("id")}) for entry in added)
    ):
        raise InvalidInput(f"{path}: its vocab, merges or added_tokens are not of the form", "Fetch the file again.")
    return model


def _numbered(value: Any) -> bool:
    """Whether this is an object of token -> id."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(token, str) and type(number) is int and number >= 0 for token, number in value.items())


def _with_scores(folder: Path, vocabulary: Vocabulary, tokenizer: dict[str, Any], added: dict[int, Any]) -> Vocabulary:
    """The vocabulary as SentencePiece has it: types and scores of tokenizer.model, or of the merges without one."""
    path = folder / "tokenizer.model"
    pieces = read_pieces(path) if path.is_file() else _pieces(vocabulary, tokenizer)
    types, scores = list(vocabulary.types), [PADDING_SCORE] * len(vocabulary.tokens)
    for number, piece in enumerate(pieces[: len(scores)]):
        if number not in added:
            if piece.text != vocabulary.tokens[number]:
                raise InvalidInput(
                    f"{path}: token {number} is {piece.text!r}, in tokenizer.json {vocabulary.tokens[number]!r}",
                    "Use files that belong together.",
                )
            types[number] = piece.kind if piece.kind != USER_DEFINED else NORMAL
        scores[number] = piece.score
    for number in added:
        scores[number] = ADDED_SCORE
    missing = 256 - sum(kind == BYTE for kind in types)
    if missing:
        raise GateMissed(f"{folder}: {missing} bytes are no token, so some text has none", CHECKOUT)
    return replace(vocabulary, model="llama", types=types, scores=tuple(scores), space_prefix=space_prefix(tokenizer))


def _pieces(vocabulary: Vocabulary, tokenizer: dict[str, Any]) -> list[Piece]:
    """What tokenizer.model would hold, from the merges: a token's rank among them is all that decides."""
    scores = scores_by_merge(vocabulary.merges)
    unknown = tokenizer["model"].get("unk_token")
    found = []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        named = UNKNOWN if token == unknown else BYTE if BYTE_TOKEN.fullmatch(token) else NORMAL
        score = PADDING_SCORE if kind == UNUSED else scores.get(token, 0.0)
        found.append(Piece(token, score, named if kind == NORMAL else kind))
    return found


def _type(number: int, spelled: dict[int, str], added: dict[int, Any]) -> int:
    if number not in spelled:
        return UNUSED
    if number not in added:
        return NORMAL
    return CONTROL if is_control(added[number]) else USER_DEFINED


def is_control(entry: dict[str, Any]) -> bool:
    """Whether an added token is a control token, by its mark or by its looks; the rule of llama.cpp's converter."""
    token = entry["content"]
    return bool(
        entry.get("special")
        or token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<\uff5c") and token.endswith("\uff5c>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def _added_text(entry: dict[str, Any]) -> str:
    """How an added token is spelled in GGUF: what a user may write has its spaces as spaces."""
    text: str = entry["content"]
    return text if is_control(entry) else text.replace(SPACE, " ")


def _merge(path: Path, merge: Any, spaces: bool) -> tuple[str, str]:
    """One merge, from either of its two spellings: "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise InvalidInput(f"{path}: {merge!r} is no merge", "Fetch the file again.")
    if not spaces and any(" " in part for part in parts):
        raise GateMissed(f"{path}: the merge {merge!r} holds a space, so this is no byte-level BPE", CHECKOUT)
    return parts[0], parts[1]


def _stated_ends(folder: Path) -> list[int]:
    """All ids that the folder's configs call an end of sequence."""
    found: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        stated = read_json(folder / name, required=False).get("eos_token_id")
        found += stated if isinstance(stated, list) else [stated]
    return [number for number in dict.fromkeys(found) if type(number) is int]


def _special_ids(folder: Path, settings: dict[str, Any], added: dict[str, int], size: int) -> dict[str, int]:
    """Ids of the special tokens: tokenizer_config's where they are added tokens, else config's, else generation's."""
    configs = [read_json(folder / name, required=False) for name in ("config.json", "generation_config.json")]
    ids = {}
    for role in ROLES:
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        candidates: list[Any] = [added.get(token) if isinstance(token, str) else None]
        for config in configs:
            found = config.get(f"{role}_token_id")
            candidates.append(found[0] if isinstance(found, list) and found else found)
        number = next((found for found in candidates if type(found) is int and 0 <= found < size), None)
        if number is not None:
            ids[role] = number
    return ids


def _added_around(
    path: Path, tokenizer: dict[str, Any], settings: dict[str, Any], special: dict[str, str]
) -> tuple[bool | None, bool | None]:
    """Whether bos and eos are put around every text: the post-processor says, else tokenizer_config.

    Raises GateMissed where other tokens than these are put there.
    """
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    processor = tokenizer.get("post_processor") or {}
    steps = processor.get("processors", [processor]) if processor else []
    for step in steps:
        if step.get("type") == "TemplateProcessing" and any("Sequence" in part for part in step.get("single") or []):
            single = [part.get("SpecialToken", {}).get("id") for part in step.get("single") or []]
            before, after = single[: single.index(None)], single[single.index(None) + 1 :]
            if before not in ([], [special.get("bos")]) or after not in ([], [special.get("eos")]):
                raise GateMissed(f"{path}: llama.cpp cannot put {single} around a text", CHECKOUT)
            return bool(before), bool(after)
    if steps:
        return False, False
    return (add_bos if isinstance(add_bos, bool) else None), (add_eos if isinstance(add_eos, bool) else None)


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The template that transformers uses: the file of its own first, then the one in tokenizer_config."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def named_for(vocabulary: Vocabulary, name: str) -> str:
    """The model's name, with what tells llama.cpp that the vocabulary's tokens swallow white space.

    >>> plain = Vocabulary([], [], [], SENTENCEPIECE, {})
    >>> named_for(plain, "home")
    'home'
    """
    needed = vocabulary.swallowing and {*NOT_SWALLOWING, "</s>"} <= set(vocabulary.tokens)
    return f"{name} (phi-3)" if needed and not any(mark in name.lower() for mark in PHI_3) else name


def add_to_gguf(vocabulary: Vocabulary, writer: GGUFWriter) -> None:
    """Put the vocabulary into a GGUF's metadata."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre.name)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(list(vocabulary.scores))
        if not vocabulary.space_prefix:
            writer.add_add_space_prefix(False)
    elif vocabulary.merges:
        writer.add_token_merges([" ".join(merge) for merge in vocabulary.merges])
    adders: dict[str, Callable[[int], None]] = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
        "eot": writer.add_eot_token_id,
        "eom": writer.add_eom_token_id,
    }
    for role, number in vocabulary.ids.items():
        adders[role](number)
    writer.add_add_bos_token(bool(vocabulary.add_bos))
    if vocabulary.add_eos is not None:
        writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def from_metadata(path: Path, metadata: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a GGUF's metadata; `path` is named in errors.

    Raises InvalidInput where it is of another kind, or where its parts do not fit together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise InvalidInput(f"{path}: no importer for tokenizer '{model}'; there is one for 'gpt2' and 'llama'")
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges", [])
    if not _texts(tokens) or not _texts(merges) or not tokens:
        raise InvalidInput(f"{path}: the GGUF holds no list of tokens and merges", "Fetch the file again.")
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise InvalidInput(f"{path}: the tokens repeat, or have not one type each", "Fetch the file again.")
    known = {token for token, kind in zip(tokens, types, strict=True) if kind != UNUSED}
    pre = SENTENCEPIECE if model == "llama" else by_name(str(metadata.get("tokenizer.ggml.pre", "default")))
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in GGUF_ROLES.items()}
    template = metadata.get("tokenizer.chat_template")
    vocabulary = Vocabulary(
        tokens=tokens,
        types=types,
        merges=[_gguf_merge(path, merge, known) for merge in merges] if model == "gpt2" else [],
        pre=pre,
        ids={role: number for role, number in ids.items() if type(number) is int and 0 <= number < len(tokens)},
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre.adds_bos)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        chat_template=template if isinstance(template, str) else None,
    )
    return vocabulary if model == "gpt2" else _of_sentencepiece(path, metadata, vocabulary)


def _of_sentencepiece(path: Path, metadata: dict[str, Any], vocabulary: Vocabulary) -> Vocabulary:
    scores = metadata.get("tokenizer.ggml.scores")
    tokens, types = vocabulary.tokens, vocabulary.types
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(type(one) is float for one in scores):
        raise InvalidInput(f"{path}: the tokens have not one score each", "Fetch the file again.")
    unknown = next((number for number, kind in enumerate(types) if kind == UNKNOWN), 0)  # llama.cpp's default is 0
    plain = {token: number for number, token in enumerate(tokens) if types[number] == NORMAL}
    return replace(
        vocabulary,
        ids={"unk": unknown, **vocabulary.ids},
        merges=merges_by_score({token: scores[number] for token, number in plain.items()}, plain),
        model="llama",
        scores=tuple(scores),
        space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        swallowing=_swallowing(str(metadata.get("general.name")), vocabulary),
    )


def _swallowing(name: str, vocabulary: Vocabulary) -> frozenset[int]:
    """The tokens that llama.cpp lets take the white space behind them, in a model that is named Phi-3."""
    if not any(mark in name.lower() for mark in PHI_3):
        return frozenset()
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    taken = [kind in (CONTROL, USER_DEFINED, UNKNOWN) and token not in NOT_SWALLOWING for token, kind in kinds]
    return frozenset(number for number, takes in enumerate(taken) if takes)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _gguf_merge(path: Path, merge: str, known: set[str]) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not {first, second, first + second} <= known:
        raise InvalidInput(f"{path}: {merge!r} is no merge", "Fetch the file again.")
    return first, second
