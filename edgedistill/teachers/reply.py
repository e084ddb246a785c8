"""What a reply says: an answer, or why it is none. Nothing that a server sends is believed before it was looked at."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from ..chat import json_instance
from ..errors import EdgeDistillError, InvalidInput, Stopped
from ..messages import messages_of, with_calls
from .http import NoReply, Reply

__all__ = ["Answer", "Failure", "Witness", "answer_of", "complaint", "failure_of", "models_of", "refusal_of", "said"]

Validator = Callable[[Any], bool]

ENDED = ("stop", "eos", "eos_token")  # the last two are what some servers write for the first
CALLED = "tool_calls"  # how an answer ends that calls a tool
REMEMBERED = 8192  # answers in which a repeated one is looked for
STRANGERS = 5  # answers in a row from another model after which it is no slip
LONGEST = 200  # letters of a server's text in a message
PIECE = 8  # letters of a key that may not show up anywhere


@dataclass(frozen=True)
class Answer:
    """A well-formed answer, which may still be of no use."""

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    id: str = ""
    digest: bytes = b""
    """Of all that was sent."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Why a request brought no answer, and what follows from it."""

    reason: str
    retry: bool = True
    refused: bool = False
    """The server says that the request itself is wrong."""
    alive: bool = False
    """The server works; it is this answer that is of no use."""
    away: bool = False
    """There was no connection at all."""
    crowded: bool = False
    """The server has too much to do."""
    wait: float = 0.0
    """Seconds that the server asks to be left alone."""


def failure_of(error: NoReply) -> Failure:
    """A reply that did not come."""
    return Failure(error.reason, away=error.away, crowded=error.crowded)


def refusal_of(reply: Reply, key: str | None, longest_wait: float) -> Failure:
    """Why a reply other than 200 brought no answer.

    Raises EdgeDistillError where asking again cannot help: a key that is not accepted, an account without credit.
    """
    status = reply.status
    reason = f"HTTP {status}"
    if 300 <= status < 400:
        return Failure(f"{reason}, a redirect")
    text = said(reply.body, key)
    if status in (401, 403):
        raise EdgeDistillError(
            f"the server answers {reason}: " + ("it does not accept the key" if key else "it asks for a key"),
            "Put the key into the environment variable that teacher.api_key_env names.",
        )
    if status == 402 or (status == 429 and "insufficient_quota" in reply.body[:2000].decode("utf-8", "replace")):
        raise Stopped(f"the server answers {reason}: no credit is left", "Top up, then run the same command again.")
    if status in (408, 409, 425, 429) or status >= 500:
        wait = min(_retry_after(reply.headers.get("retry-after", "")), longest_wait)
        return Failure(reason, crowded=status in (429, 503), wait=wait)
    return Failure(f"{reason} ({text})" if text else reason, retry=status == 404, refused=True, alive=status != 404)


def answer_of(reply: Reply) -> Answer | Failure:
    """The answer in a reply with status 200."""
    try:
        payload = json.loads(reply.body.decode("utf-8"))
    except UnicodeDecodeError:
        return Failure("an answer that is not UTF-8")
    except (ValueError, RecursionError):
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        return Failure("an answer that is not JSON" + (f" but {kind}" if kind in ("text/html", "text/plain") else ""))
    choices = payload.get("choices") if isinstance(payload, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Failure("an answer without choices")
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        return Failure("an answer that is not text")
    try:
        (said,) = messages_of("reply", {"messages": [{"role": "assistant", **_spoken(message)}]})
    except InvalidInput:
        return Failure("tool calls that are none", alive=True)
    usage = payload.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    reason = choice.get("finish_reason")
    answer = Answer(
        text=with_calls(said),
        finish_reason=reason if isinstance(reason, str) else "",
        model=_text(payload.get("model")),
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
        id=_text(payload.get("id")),
        digest=hashlib.blake2b(reply.body, digest_size=16).digest(),
    )
    return answer if _is_unicode(answer.text) else Failure("an answer with half a surrogate pair")


def complaint(answer: Answer, is_valid: Validator | None, has_tools: bool = False) -> Failure | None:
    """Why an answer is of no use, or None. One that was cut off is kept: it says so."""
    if answer.finish_reason == "length":
        if answer.text.strip():
            return None
        return Failure("nothing but thought within teach.max_tokens", retry=False, alive=True)
    if answer.finish_reason not in ENDED and not (has_tools and answer.finish_reason == CALLED):
        return Failure(f"finish_reason '{_plain(answer.finish_reason)[:40]}'", alive=True)
    if not answer.text.strip():
        return Failure("an empty answer", alive=True)
    if is_valid is not None and not is_valid(json_instance(answer.text)):
        return Failure("an answer that does not match the schema", alive=True)
    return None


class Witness:
    """Remembers which model answers, and which answers it gave."""

    def __init__(self, asked: str) -> None:
        self.model: str | None = None
        self._asked = asked
        self._candidate: str | None = None
        self._strangers = 0
        self._reuses_ids = False
        self._seen: OrderedDict[str, bytes] = OrderedDict()

    def meet(self, answer: Answer) -> bool:
        """Whether it is now known by which name the model answers: the one asked for, or any other given twice."""
        self._is_repeated(answer)
        if answer.model in (self._asked, self._candidate):
            self.model = answer.model
        self._candidate = answer.model
        return self.model is not None

    def check(self, answer: Answer) -> Failure | None:
        """Why an answer is not the one to this request.

        Raises Stopped where the server has gone over to another model.
        """
        if self.model is not None and answer.model != self.model:
            self._strangers = self._strangers + 1 if answer.model == self._candidate else 1
            self._candidate = answer.model
            if self._strangers >= STRANGERS:
                raise Stopped(
                    f"the server now answers as '{_plain(answer.model)}', not '{self.model}'",
                    "Let it serve that model again and run the same command, or teach afresh with --from teach.",
                )
            return Failure("an answer of another model")
        self._strangers = 0
        return Failure("the answer to another request") if self._is_repeated(answer) else None

    def _is_repeated(self, answer: Answer) -> bool:
        """Whether the very same bytes came before, from a server that gives each answer an id of its own."""
        if not answer.id:
            return False
        before = self._seen.get(answer.id)
        self._reuses_ids |= before not in (None, answer.digest)
        self._seen[answer.id] = answer.digest
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return before == answer.digest and not self._reuses_ids


def models_of(reply: Reply) -> list[str] | None:
    """The models that a server lists, under any of the keys in use; None where it lists none."""
    try:
        payload = json.loads(reply.body.decode("utf-8")) if reply.status == 200 else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(payload, dict):
        return None
    entries = [entry for key in ("data", "models") if isinstance(payload.get(key), list) for entry in payload[key]]
    rows = [entry for entry in entries if isinstance(entry, dict)]
    names = [row.get(key) for row in rows for key in ("id", "model", "name")]
    names += [alias for row in rows if isinstance(row.get("aliases"), list) for alias in row["aliases"]]
    return list(dict.fromkeys(_plain(name) for name in names if isinstance(name, str) and name)) or None


def said(body: bytes, key: str | None) -> str:
    """A server's own words in an error, as one line; none where they hold a piece of the key."""
    text = body[:4000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    except (ValueError, RecursionError):
        if "<" in text:
            return ""
    if key and any(key[start : start + PIECE] in text for start in range(max(1, len(key) - PIECE + 1))):
        return ""
    return _plain(text)


def _spoken(message: dict[str, Any]) -> dict[str, Any]:
    """What counts of a server's message: of a call its function, as only a text is kept."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return {"content": None, "tool_calls": "none"}
    kept = [{"type": "function", "function": call.get("function")} for call in calls]
    return {"content": message.get("content") or "", "tool_calls": kept}


def _retry_after(text: str) -> float:
    """Seconds from now that a Retry-After header asks for (RFC 9110 10.2.3); 0 where it says nothing."""
    if text.isascii() and text.strip().isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


def _plain(text: str) -> str:
    """The beginning of a stranger's text as one line, without what could steer a terminal."""
    line = " ".join(text[: 4 * LONGEST].split())[:LONGEST]
    return "".join(letter if letter.isprintable() else " " for letter in line)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
