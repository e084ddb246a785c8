"""In which language a text is, by the model that py3langid brings along: naive Bayes over byte n-grams.

Lui and Baldwin, langid.py, 2012; 139 languages. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..errors import InvalidInput
from ..recipe import Recipe
from ..run import Run

__all__ = ["known_languages", "other_language", "require_languages"]

FEWEST_LETTERS = 24  # fewer do not tell languages apart
MOST_SIGNS = 400  # more do not tell them apart any better
SURE = 0.5  # probability of the language that it is said to be in ...
DOUBT = 0.1  # ... and of all that are wanted, from which on a text passes


def other_language(text: str, languages: Sequence[str]) -> str | None:
    """The ISO 639-1 code of a text's language, if it is surely none of `languages`; a short text is never sure.

    >>> other_language("Vielen Dank für Ihre Nachricht, wir melden uns morgen bei Ihnen.", ("en",))
    'de'
    >>> other_language("Thank you for your message, we will write to you tomorrow.", ("en", "fr")) is None
    True
    """
    said = text[:MOST_SIGNS]
    if sum(sign.isalpha() for sign in said) < FEWEST_LETTERS // (1 if said.isascii() else 2):
        return None
    ranked: list[tuple[str, float]] = _identifier().rank(said)
    language, sure = ranked[0]
    wanted = sum(share for other, share in ranked if other in languages)
    return language if sure >= SURE and wanted < DOUBT else None


def require_languages(recipe: Recipe, run: Run) -> str:
    """Whether the languages of the recipe can be told apart, as found; raise InvalidInput where one is not known."""
    languages = recipe.curate.languages
    for language in languages:
        if language not in known_languages():
            raise InvalidInput(
                f"{recipe.path}: curate.languages: unknown code '{language}'",
                "Write ISO 639-1 codes, such as en or de.",
            )
    return ", ".join(languages) or "any"


def known_languages() -> frozenset[str]:
    """The codes of all languages that are told apart."""
    return frozenset(_identifier().labels)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
