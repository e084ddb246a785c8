"""The work of T1 and T3: 256 prompts behind one system text, about 150 tokens shared, 30 of their own, 60 out."""

from __future__ import annotations

from pathlib import Path

from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.records import Message, Prompt, read_prompts
from edgedistill.run import cores

__all__ = ["MAX_TOKENS", "SYSTEM", "answerer", "prompts"]

MAX_TOKENS = 60
OWN_TOKENS = range(22, 39)
SYSTEM = (
    "You answer the messages that customers of a small company write to its support. The company sells software, "
    "devices and a subscription, ships parcels in many countries and has a web shop with accounts. Be friendly, calm "
    "and to the point. Say first what you understood, in your own words, so that the customer sees that a person has "
    "read the message. Then say what will happen next, and what the customer can do at once. Never promise money, a "
    "date or a repair; say who will decide and by when they will hear from us. Do not ask for passwords or card "
    "numbers. If something is not clear, ask one question, the one that helps the most. Write three or four whole "
    "sentences of plain text, without lists, headings or a signature, in the language of the message."
)
ROOT = Path(__file__).resolve().parents[2]


def answerer(model: Path, layouts: Path | None = None) -> Answerer:
    """The model behind the system text."""
    return Answerer(model, [Message("system", SYSTEM)], None, AnswererSettings(cores(), layouts=layouts))


def prompts(opened: Answerer, count: int = 256) -> list[Prompt]:
    """Real messages whose own part has about 30 tokens."""
    rows = read_prompts(ROOT / "recipes" / "support-triage" / "prompts.jsonl")
    fitting = [row for row in rows if len(opened.shared.split(row.messages)[1]) in OWN_TOKENS]
    if len(fitting) < count:
        fitting += [Prompt(f"{row.id[::-1]}", (Message("user", row.text[::-1][:90]),)) for row in fitting]
    return fitting[:count]
