"""What a model's licence says about training on its outputs and passing on what was trained.

A short table of the licences that open-weight models carry, and a gate. It records what the licences' own texts say in
plain words; it is a reminder of what to read, not legal advice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from ..errors import GateMissed

__all__ = ["LICENCES", "Licence", "Role", "licence_text", "vet_licence"]

Role = Literal["teacher", "student"]
Answer = Literal["yes", "on acceptance", "no"]

TEXT = "the licence's text goes with the model"
CREDIT = "the authors are named, and that the model was changed"
USES = "the licence's list of forbidden uses is passed on"


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence, by the id that the hub uses.

    `outputs` and `changes` say whether its model's outputs may train another model, and whether the model itself may
    be trained further; "on acceptance" is for terms that allow it to some users only. `name_prefix` is what the new
    model's name must begin with; `notice` is the text of the file `notice_file` that must go with the new model.
    """

    id: str
    name: str
    conditions: str
    outputs: Answer = "yes"
    changes: Answer = "yes"
    name_prefix: str | None = None
    notice: str | None = None

    @property
    def outputs_may_train(self) -> bool:
        return self.outputs == "yes"

    @property
    def notice_file(self) -> str | None:
        """The name of the file that the notice goes into, or None where the licence asks for none."""
        return f"NOTICE-{re.sub(r'[^a-z0-9.+-]+', '-', self.id.lower())}.txt" if self.notice else None


def _llama(version: str) -> Licence:
    return Licence(
        id=f"llama{version}",
        name=f"Llama {version} Community License",
        conditions="the new model's name begins with 'Llama'; 'Built with Llama' is shown; the acceptable use policy "
        "holds; a separate licence is needed above 700 million monthly users",
        name_prefix="Llama",
        notice=f"Built with Llama.\n\nLlama {version} is licensed under the Llama {version} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.\n",
    )


LICENCES: dict[str, Licence] = {
    licence.id: licence
    for licence in (
        Licence("apache-2.0", "Apache License 2.0", f"{TEXT}; changes are stated"),
        Licence("mit", "MIT License", TEXT),
        Licence("bsd-2-clause", 'BSD 2-Clause "Simplified" License', TEXT),
        Licence("bsd-3-clause", 'BSD 3-Clause "New" or "Revised" License', TEXT),
        Licence("isc", "ISC License", TEXT),
        Licence("cc0-1.0", "Creative Commons Zero v1.0 Universal", "none"),
        Licence("unlicense", "The Unlicense", "none"),
        Licence("cdla-permissive-2.0", "Community Data License Agreement Permissive 2.0", TEXT),
        Licence("cc-by-4.0", "Creative Commons Attribution 4.0 International", CREDIT),
        Licence(
            "cc-by-sa-4.0",
            "Creative Commons Attribution Share Alike 4.0 International",
            f"{CREDIT}; the new model has the same licence",
        ),
        Licence(
            "cc-by-nc-4.0",
            "Creative Commons Attribution Non Commercial 4.0 International",
            f"{CREDIT}; no commercial use",
            outputs="on acceptance",
            changes="on acceptance",
        ),
        Licence(
            "cc-by-nc-sa-4.0",
            "Creative Commons Attribution Non Commercial Share Alike 4.0 International",
            f"{CREDIT}; no commercial use; the new model has the same licence",
            outputs="on acceptance",
            changes="on acceptance",
        ),
        Licence(
            "cc-by-nd-4.0",
            "Creative Commons Attribution No Derivatives 4.0 International",
            "nothing that was made from it is passed on",
            outputs="no",
            changes="no",
        ),
        Licence("openrail", "Open Responsible AI License", USES),
        Licence("openrail++", "CreativeML Open RAIL++-M License", USES),
        Licence("bigscience-openrail-m", "BigScience Open RAIL-M License", USES),
        Licence("bigcode-openrail-m", "BigCode Open RAIL-M License v1", USES),
        Licence("creativeml-openrail-m", "CreativeML Open RAIL-M License", USES),
        Licence(
            "gemma",
            "Gemma Terms of Use",
            "a model trained on Gemma's outputs to behave like it is a Model Derivative: the terms, their list of "
            "forbidden uses and the notice are passed on with it",
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n",
        ),
        _llama("3.1"),
        _llama("3.2"),
        _llama("3.3"),
        Licence(
            "llama3",
            "Meta Llama 3 Community License",
            "the new model's name begins with 'Llama 3'; outputs may improve no other language model",
            outputs="no",
            name_prefix="Llama 3",
            notice="Built with Meta Llama 3.\n\nMeta Llama 3 is licensed under the Meta Llama 3 Community License, "
            "Copyright © Meta Platforms, Inc. All Rights Reserved.\n",
        ),
        Licence(
            "llama2",
            "Llama 2 Community License",
            "outputs may improve no other language model",
            outputs="no",
            notice="Llama 2 is licensed under the LLAMA 2 Community License, "
            "Copyright (c) Meta Platforms, Inc. All Rights Reserved.\n",
        ),
    )
}

FULL_TEXTS = ("apache-2.0", "mit", "bsd-3-clause")
OTHER_SPELLINGS = {
    "apache license 2.0": "apache-2.0",
    "apache 2.0": "apache-2.0",
    "apache2.0": "apache-2.0",
    "apache-2": "apache-2.0",
    "mit license": "mit",
    "gemma-terms-of-use": "gemma",
    "llama-2": "llama2",
    "llama-3": "llama3",
    "llama-3.1": "llama3.1",
    "llama-3.2": "llama3.2",
    "llama-3.3": "llama3.3",
}


def vet_licence(licence: str | None, role: Role, accepted: str | None) -> Licence:
    """The licence of a model that may play this role: teach with its outputs, or be trained as the student.

    `licence` is an id of the hub or an SPDX expression, `accepted` the recipe's `accept_license`. Raises GateMissed
    where the licence forbids the role, or is not known or not stated and the recipe has not accepted it.
    """
    accepted = accepted.strip() or None if accepted else None
    if licence is None or licence.strip().lower() in ("", "other", "unknown"):
        if accepted is None:
            raise GateMissed(
                f'the {role} states no licence; it is not used until the recipe says accept_license = "ID"',
                "Find the licence on the model's page, read it, and write its id.",
            )
        licence = accepted
    return _vet(_parse(licence), role, accepted)


def _parse(licence: str) -> Any:
    """The parsed SPDX expression; the text itself where it is none."""
    if not re.search(r"\b(OR|AND|WITH)\b", licence):
        return licence
    from license_expression import ExpressionError, Licensing

    try:
        return Licensing().parse(licence)
    except (ExpressionError, AssertionError, AttributeError, LookupError, TypeError):
        # The library's parser trips over some malformed expressions, such as "MIT OR ()".
        return licence


def _vet(term: Any, role: Role, accepted: str | None) -> Licence:
    """The licence of a part of an expression: the first of OR that passes, all of AND."""
    operator = getattr(term, "operator", "").strip()
    if operator == "AND":
        return _all_of([_vet(part, role, accepted) for part in term.args])
    if operator == "OR":
        failed: GateMissed | None = None
        for part in term.args:
            try:
                return _vet(part, role, accepted)
            except GateMissed as error:
                failed = failed or error
        assert failed is not None
        raise failed
    return _vet_one(str(term), role, accepted)


def _vet_one(text: str, role: Role, accepted: str | None) -> Licence:
    known = LICENCES.get(_canonical(text))
    agreed = accepted is not None and _canonical(accepted) == _canonical(text)
    if known is None:
        if not agreed:
            raise GateMissed(
                f"the {role}'s licence '{text}' is not a known one; it is not used until the recipe says "
                f'accept_license = "{text}"',
                "Read it on the model's page first: may outputs train another model, and what must go with that?",
            )
        return Licence(text, text, "as its own text says; the recipe has accepted it")
    answer = known.outputs if role == "teacher" else known.changes
    act = "training on the model's outputs" if role == "teacher" else "training the model further"
    if answer == "no":
        raise GateMissed(
            f"the {role}'s licence '{known.id}' ({known.name}) does not allow {act}", f"Choose another {role}."
        )
    if answer == "on acceptance" and not agreed:
        raise GateMissed(
            f"the {role}'s licence '{known.id}' ({known.name}) allows {act} on a condition: {known.conditions}",
            f'If you keep to it, say so in the recipe: accept_license = "{known.id}".',
        )
    return known


def _canonical(text: str) -> str:
    text = " ".join(text.lower().split())
    return OTHER_SPELLINGS.get(text, text)


def _all_of(licences: list[Licence]) -> Licence:
    """One licence with the conditions of all."""
    first = licences[0]
    notices = [licence.notice for licence in licences if licence.notice]
    prefixes = [licence.name_prefix for licence in licences if licence.name_prefix]
    return replace(
        first,
        id=" AND ".join(licence.id for licence in licences),
        name=" and ".join(licence.name for licence in licences),
        conditions="; ".join(licence.conditions for licence in licences),
        name_prefix=max(prefixes, key=len, default=None),
        notice="\n".join(notices) or None,
    )


def licence_text(licence_id: str) -> str:
    """The text that goes with a model: the full licence where it is a short one, else its name, notice and conditions.

    Parts of an "A AND B" id follow each other.
    """
    parts = [_canonical(part) for part in licence_id.split(" AND ")]
    return "\n".join(_one_text(part, original) for part, original in zip(parts, licence_id.split(" AND "), strict=True))


def _one_text(licence_id: str, original: str) -> str:
    if licence_id in FULL_TEXTS:
        return resources.files(__package__).joinpath("texts").joinpath(f"{licence_id}.txt").read_text(encoding="utf-8")
    licence = LICENCES.get(licence_id)
    if licence is None:
        return f"{original}\n\nThe full text is with the model that this one was made from.\n"
    notice = f"{licence.notice}\n" if licence.notice else ""
    short = f"Conditions, in short: {licence.conditions}.\nThe licence's own text is what holds.\n"
    return f"{licence.name}\n\n{notice}{short}"
