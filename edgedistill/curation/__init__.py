"""Which rows are worth learning: rules that look at one row each, and some that look at all of them."""

from __future__ import annotations

from .rules import RULES, Given, broken_rule

__all__ = ["RULES", "Given", "broken_rule"]
