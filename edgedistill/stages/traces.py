"""What a student learns of an answer that was thought over: the trace kept, taken out, or said in fewer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..recipe import CurateSettings
from ..records import Message, Tool
from .final_answer import THOUGHTS, thought_and_said, without_trace
from .tool_calls import message_of

__all__ = ["fenced", "learned_message", "learned_text", "learned_turns"]


def learned_message(text: str, tools: tuple[Tool, ...], settings: CurateSettings) -> Message:
    """An answer as the student learns it: what was thought as its `reasoning`, or no trace at all.

    >>> learned_message("<think>6 * 7</think>42", (), CurateSettings()).reasoning
    '6 * 7'
    >>> learned_message("6 * 7 = 42\\nAnswer: 42", (), CurateSettings(reasoning="strip")).content
    'Answer: 42'
    """
    thought = "" if settings.reasoning == "strip" else thought_and_said(text)[0]
    return replace(message_of(learned_text(text, settings), tools), reasoning=thought)


def learned_text(text: str, settings: CurateSettings) -> str:
    """What is said in an answer as the student learns it, without what was thought."""
    said = thought_and_said(text)[1]
    return without_trace(said) if settings.reasoning == "strip" else said


def learned_turns(turns: Sequence[Message], settings: CurateSettings) -> tuple[Message, ...]:
    """Turns on the way to an answer as the student sees them: with what was thought, or without any trace."""
    return tuple(_stripped(one) for one in turns) if settings.reasoning == "strip" else tuple(turns)


def _stripped(turn: Message) -> Message:
    is_answer = turn.role == "assistant" and not turn.tool_calls
    return replace(turn, reasoning="", content=without_trace(turn.content) if is_answer else turn.content)


def fenced(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages for a template that knows no reasoning: each answer has it in its text, as most models fence it.

    >>> fenced([Message("user", "2 + 2?"), Message("assistant", "4", reasoning="Two and two.")])[1].content
    '<think>\\nTwo and two.\\n</think>\\n\\n4'
    """
    begin, end = THOUGHTS[0]
    return tuple(
        replace(one, content=f"{begin}\n{one.reasoning}\n{end}\n\n{one.content}", reasoning="")
        if one.reasoning
        else one
        for one in messages
    )
