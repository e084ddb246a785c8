"""N3: 1,000 bad rows of 20 kinds among 19,000 good ones, some of which look bad: how many curate finds, and why."""

from __future__ import annotations

import base64
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from curating import asked, sentence, taught_run
from measure import finish, note

from edgedistill.records import Completion, Prompt, read_rows
from edgedistill.stages.curate import curate

GOOD, EACH = 19_000, 50
MOST_GOOD_DROPPED, LEAST_CAUGHT, LEAST_RIGHT = 20, 990, 950
SCHEMA = {"type": "object", "properties": {"reply": {"type": "string"}}, "required": ["reply"]}
RECIPE = """
name = "n3"
schema_file = "schema.json"
[teacher]
model = "t.gguf"
[student]
model = "s"
[teach]
samples = 2
temperature = 0.5
[curate]
agreement = 0.6
languages = ["en"]
length_factor = 12.0
"""
OTHERS = (
    "Vielen Dank für Ihre Nachricht, wir melden uns morgen bei Ihnen, sobald das Paket angekommen ist",
    "Merci pour votre message, nous vous répondrons demain matin dès que le colis sera arrivé chez nous",
    "Gracias por su mensaje, le responderemos mañana en cuanto llegue el paquete a nuestro almacén",
    "感谢您的来信，包裹一到我们就会在明天早上回复您，请您耐心等待一下，谢谢您的理解和支持",
    "Спасибо за ваше сообщение, мы ответим завтра утром, как только посылка придёт на склад",
)
Bad = tuple[str, list[str], str]  # text asked, answers, finish_reason


def reply(text: str) -> str:
    return json.dumps({"reply": text}, ensure_ascii=False)


def with_luhn(digits: str) -> str:
    values = [int(sign) * (2 if place % 2 == 0 else 1) for place, sign in enumerate(reversed(digits))]
    return f"{digits}{-sum(value - 9 * (value > 9) for value in values) % 10}"


def iban(source: random.Random) -> str:
    account = "".join(source.choice("0123456789") for _ in range(18))
    return f"DE{98 - int(account + '131400') % 97:02d}{account}"


def digits(source: random.Random, count: int) -> str:
    return "".join(source.choice("0123456789") for _ in range(count))


def key(source: random.Random) -> str:
    letters = "".join(
        source.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(40)
    )
    head = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
    return source.choice(
        [
            f"sk-{letters}7",
            f"hf_{letters[:34]}",
            f"AKIA{letters[:16].upper()}",
            f"{head}.eyJzdWIiOiIxIn0.{letters}",
            f"-----BEGIN {'PRIVATE'} KEY-----\n{letters}\n-----END {'PRIVATE'} KEY-----",
        ]
    )


def personal(source: random.Random) -> str:
    return source.choice(
        [
            f"{sentence(source, 1)[:-1].lower()}.{digits(source, 3)}@mail.example.org",
            f"+49 30 {digits(source, 7)}",
            f"(212) {digits(source, 3)}-{digits(source, 4)}",
            iban(source),
            with_luhn("4" + digits(source, 14)),
        ]
    )


def hidden(signs: str) -> Callable[[random.Random], list[str]]:
    def answer(source: random.Random) -> list[str]:
        text = sentence(source, 14)
        place = source.randrange(1, len(text))
        return [reply(text[:place] + source.choice(signs) + text[place:])]

    return answer


def looped(source: random.Random) -> list[str]:
    return [reply(sentence(source, 12) + f" and {sentence(source, 3)[:-1]}" * 40)]


def stuck(source: random.Random) -> list[str]:
    return [reply(sentence(source, 12) + source.choice(["ha", "=", "哈", "1,", "na "]) * 400)]


# kind -> reason, and what is answered to a prompt like any other
ANSWERS: dict[str, tuple[str, Callable[[random.Random], list[str]]]] = {
    "empty": ("empty", lambda source: [source.choice(["", "  ", "\n"])]),
    "refusal": (
        "refusal",
        lambda source: [
            reply(source.choice(["I'm sorry, ", "I cannot ", "As an AI, ", "I’m sorry "]) + sentence(source, 9))
        ],
    ),
    "loop of words": ("repetition", looped),
    "loop of signs": ("repetition", stuck),
    "another language": ("wrong language", lambda source: [reply(f"{source.choice(OTHERS)} {digits(source, 4)}.")]),
    "too long": ("too long", lambda source: [reply(" ".join(sentence(source, 14) for _ in range(20)))]),
    "too short": ("too short", lambda source: [reply(source.choice(["", "Ok", "1."]))]),
    "no JSON": ("schema", lambda source: [sentence(source, 14)]),
    "another field": ("schema", lambda source: [json.dumps({"answer": sentence(source, 14)})]),
    "special token": (
        "special tokens",
        lambda source: [reply(sentence(source, 14) + source.choice(["<|im_end|>", "</s>", "[INST]", "<end_of_turn>"]))],
    ),
    "tag characters": ("invisible characters", hidden("".join(map(chr, range(0xE0041, 0xE005B))))),
    "zero-width signs": ("invisible characters", hidden("\u200b\u2060\ufeff")),
    "bidi controls": ("invisible characters", hidden("\u202a\u202e\u2066\u2069")),
    "control signs": ("invisible characters", hidden("\x00\x07\x1b\x7f")),
    "secret": ("secret", lambda source: [reply(f"{sentence(source, 9)} {key(source)}")]),
    "personal data": ("personal data", lambda source: [reply(f"{sentence(source, 9)} It is {personal(source)} now.")]),
    "samples that differ": (
        "teachers disagree",
        lambda source: [reply(sentence(source, 14)), reply(sentence(source, 14))],
    ),
}


def good(source: random.Random) -> tuple[str, list[str], tuple[str, ...]]:
    """A row that is as it should be; one in eight has something in it that a careless rule would take for a fault."""
    text, answer = sentence(source, 18), sentence(source, 14)
    looks = source.randrange(64)
    mail = f"{sentence(source, 1)[:-1].lower()}@mail.example.org"
    lookalikes = {
        0: (f"{text} I am {mail}.", f"{answer} We write to {mail}."),
        1: (text, f"Well, I cannot say. {answer}"),
        2: (text, f"{answer} Order {digits(source, 16)} of 2024-05-06, 12:30, at 1,299.00."),
        3: (text, f"{answer} 👩\u200d🍳 ❤\ufe0f"),
        4: (text, f"{answer} <b>Now</b>, if a < b | c > d [see x]."),
        5: (text, f"{answer} Thank you, thank you, thank you."),
        6: (text, f"1. {sentence(source, 6)}\n2. {sentence(source, 6)}\n\t- naïve café, Zürich, 東京"),
        7: (text, f"{answer} Version 10.15.7, 192.168.0.10, icon@2x.png."),
    }
    text, answer = lookalikes.get(looks, (text, answer))
    return text, [reply(answer)], (source.choice("abcd"),)


def planted(
    source: random.Random,
) -> tuple[list[tuple[Prompt, list[Completion]]], dict[str, tuple[str, str]], list[str]]:
    """All rows, mixed; of each bad one, by id, its kind and the right reason; the prompts of the eval set."""
    rows: list[tuple[Prompt, list[str], str]] = []
    bad: dict[str, tuple[str, str]] = {}
    evals: list[str] = []
    for _ in range(GOOD):
        text, answers, tags = good(source)
        rows.append((asked(text, tags), answers, "stop"))
    earlier = [prompt.text for prompt, _, _ in rows]

    def plant(kind: str, reason: str, text: str, answers: list[str], ended: str = "stop") -> None:
        prompt = asked(text, (source.choice("abcd"),))
        bad[prompt.id] = kind, reason
        rows.append((prompt, answers, ended))

    for number in range(EACH):
        for kind, (reason, make) in ANSWERS.items():
            plant(kind, reason, sentence(source, 18), make(source))
        plant("cut off", "cut off", sentence(source, 18), [reply(sentence(source, 14))[:40]], "length")
        first = earlier[source.randrange(GOOD)]
        copied = first.upper() + "!" if number % 2 else f"  {first[:-1]}?"
        near = first.replace(" the ", " a ", 1) if number % 2 and " the " in first else first[:-1] + "s."
        plant("duplicate", "near duplicate", copied if number % 4 < 2 else near, [reply(sentence(source, 14))])
        evals.append(sentence(source, 18))
        plant("in the eval set", "overlap with eval", evals[-1][:-1] + " now.", [reply(sentence(source, 14))])
    source.shuffle(rows)
    made = [
        (prompt, [_completion(prompt, text, ended) for text in (answers * 2)[:2]]) for prompt, answers, ended in rows
    ]
    return made, bad, evals


def _completion(prompt: Prompt, text: str, ended: str) -> Completion:
    return Completion(prompt.id, text, ended, 9, 9, 0.1)


def main() -> None:
    rows, bad, evals = planted(random.Random(3))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
        recipe, run = taught_run(Path(folder), RECIPE, rows, evals)
        out = run.begin("curate", "key", afresh=True)
        stats = curate(recipe, run, out, lambda what, done, total: None)
        rejected = {row["_ed"]["id"]: row["_ed"] for _, row in read_rows(out / "rejected.jsonl")}
    note(json.dumps(stats))
    pairs = {frozenset((one, own.get("of"))) for one, own in rejected.items() if "duplicate" in own["reason"]}
    caught = wrong = 0
    missed: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for identity, (kind, reason) in bad.items():
        own = rejected.pop(identity, None)
        if own is None and kind == "duplicate":  # of two that are alike the later one goes, whichever was planted
            other = next((one for one in rejected if frozenset((one, identity)) in pairs), None)
            own = rejected.pop(other) if other is not None else None
        if own is None:
            missed[kind] += 1
            continue
        caught += 1
        is_right = own["reason"] == reason or (kind == "duplicate" and own["reason"] == "exact duplicate")
        wrong += not is_right
        others[f"{kind}: {own['reason']}"] += not is_right
    dropped = Counter(own["reason"] for own in rejected.values())
    value = {"caught": caught, "right_reason": caught - wrong, "good_dropped": sum(dropped.values())}
    bar = {"caught": LEAST_CAUGHT, "right_reason": LEAST_RIGHT, "good_dropped": MOST_GOOD_DROPPED}
    holds = caught >= LEAST_CAUGHT and caught - wrong >= LEAST_RIGHT and value["good_dropped"] <= MOST_GOOD_DROPPED
    details = {"missed": missed, "other_reasons": +others, "good_dropped_as": dropped, "kinds": len(ANSWERS) + 3}
    finish("N3", value, bar, holds, peer=None, unit="rows", n=len(bad) + GOOD, **details)


if __name__ == "__main__":
    main()
