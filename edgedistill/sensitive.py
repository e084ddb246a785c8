"""Secrets and personal data in a text: what they look like, and the sums by which most of them prove themselves.

IBAN: ISO 13616, mod 97 (ISO 7064). Cards: ISO/IEC 7812, Luhn. Phones: ITU-T E.164, the North American plan, and
national numbers as people write them. JWT: RFC 7519. PEM: RFC 7468. No form takes more time than the text is long.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["KINDS", "PERSONAL", "SECRETS", "Found", "find"]


@dataclass(frozen=True, slots=True)
class Found:
    """Where something sensitive stands in a text, and what it is: one of `KINDS`. `end` is behind its last sign."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Recogniser:
    """What one kind looks like."""

    kind: str
    cheap: tuple[str, ...] | re.Pattern[str]
    """Something that every text with one has, one of some words or a form that begins with a digit: both are looked for
    fast, and most texts are done with after it."""
    form: re.Pattern[str]
    proof: Callable[[str], int]
    """How many of the signs found are it, from the first on; 0 where it only looks like it."""
    is_secret: bool = False


def find(text: str) -> list[Found]:
    """All secrets and personal data of a text, in its order; no two overlap.

    >>> found = find("Mail anna@example.com, call +49 30 901820, pay DE89 3704 0044 0532 0130 00.")
    >>> [one.kind for one in found]
    ['e-mail', 'phone', 'IBAN']
    >>> find("Order 4111 1111 1111 1112 came on 2024-05-06 for 1,299.00.")
    []
    """
    found: list[Found] = []
    looked_for, is_there = None, False
    for recogniser in RECOGNISERS:
        if recogniser.cheap is not looked_for:  # those behind one another that share it are done with at once
            looked_for, is_there = recogniser.cheap, _may_be_in(recogniser.cheap, text)
        if is_there:
            new = [one for one in _of(recogniser, text) if _is_free(one, found)]
            found = sorted([*found, *new], key=_start)
    return found


def _may_be_in(cheap: tuple[str, ...] | re.Pattern[str], text: str) -> bool:
    if isinstance(cheap, tuple):
        return any(map(text.__contains__, cheap))
    return cheap.search(text) is not None


def _of(recogniser: _Recogniser, text: str) -> Iterator[Found]:
    place = 0
    while match := recogniser.form.search(text, place):
        start, end = match.span("it") if "it" in recogniser.form.groupindex else match.span()
        size = recogniser.proof(text[start:end])
        if size:
            yield Found(recogniser.kind, start, start + size)
        place = max(start + size, start + 1)


def _is_free(one: Found, found: list[Found]) -> bool:
    """Whether nothing that was found, in order, stands where this does."""
    place = bisect_left(found, one.end, key=_start)
    return not place or found[place - 1].end <= one.start


def _start(one: Found) -> int:
    return one.start


# Proofs


def _all(text: str) -> int:
    return len(text)


def _mail(text: str) -> int:
    """No picture such as icon@2x.png, and no name longer than RFC 5321 allows."""
    local, _, domain = text.rpartition("@")
    is_file = domain.lower().endswith((".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"))
    return 0 if is_file or len(local) > 64 or ".." in text or local[0] == "." or local[-1] == "." else len(text)


def _iban(text: str) -> int:
    """The country says how long it is; then it is divisible by 97, but for 1.

    >>> _iban("GB82WEST12345698765432 and"), _iban("GB82WEST12345698765433")
    (22, 0)
    """
    size = IBAN_LENGTHS.get(text[:2].upper(), 0)
    places = [place for place, sign in enumerate(text) if sign.isalnum()][:size]
    if not size or len(places) < size:
        return 0
    plain = "".join(text[place] for place in places).upper()
    end = places[-1] + 1
    if end < len(text) and text[end].isalnum():
        return 0
    number = int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4]))
    return end if number % 97 == 1 else 0


def _card(text: str) -> int:
    """A length that its issuer gives, and the Luhn sum.

    >>> _card("4111-1111-1111-1111"), _card("4111-1111-1111-1112"), _card("9111111111111111")
    (19, 0, 0)
    """
    digits = re.sub(r"\D", "", text)
    if not any(re.match(begins, digits) and len(digits) in lengths for begins, lengths in ISSUERS):
        return 0
    doubled = (2 * int(sign) for sign in digits[-2::-2])
    total = sum(int(sign) for sign in digits[-1::-2]) + sum(value - 9 * (value > 9) for value in doubled)
    return len(text) if total % 10 == 0 and len(set(digits)) > 1 else 0


def _international(text: str) -> int:
    """A calling code that is given out, and 8 to 15 digits; in the North American plan as many as it has.

    >>> _international("+49 30 901820"), _international("+999 123 456"), _international("+1 212 555 0123")
    (13, 0, 15)
    """
    digits = re.sub(r"\D", "", text)
    digits = digits[2:] if text[0] == "0" else digits
    if digits[:1] == "1":
        return len(text) if re.fullmatch(r"1[2-9]\d{2}[2-9]\d{6}", digits) else 0
    return len(text) if 8 <= len(digits) <= 15 and CALLING_CODE.match(digits) else 0


def _national(text: str) -> int:
    """9 to 12 digits behind a 0, in groups of one manner: no date with a time behind it, no row of small numbers."""
    digits = re.sub(r"\D", "", text)
    groups = re.findall(r"\d+", text)
    pairs = all(len(group) == 2 for group in groups)
    is_mixed = "." in text and re.search(r"[ /()-]", text) is not None
    is_phone = 9 <= len(digits) <= 12 and not is_mixed and (len(groups) == 5 if pairs else len(groups) < 6)
    return len(text) if is_phone else 0


def _named(text: str) -> int:
    return len(text) if 7 <= len(re.sub(r"\D", "", text)) <= 15 else 0


def _jwt(text: str) -> int:
    """The first part says by which algorithm it is signed."""
    head = text.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return 0
    return len(text) if isinstance(header, dict) and "alg" in header else 0


def _key(text: str) -> int:
    """No word with hyphens, such as the class of a style sheet."""
    return len(text) if re.search(r"\d|[A-Z]", text.partition("-")[2]) else 0


# Tables

# country -> characters of its IBAN (SWIFT's IBAN registry)
IBAN_LENGTHS = {
    country: size
    for size, countries in {
        15: "NO",
        16: "BE",
        18: "DK FK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
# what a card's number begins with -> its lengths
ISSUERS = (
    (r"4", (13, 16, 19)),
    (r"5[1-5]|2(?:2[2-9]|[3-6]|7[01]|720)", (16,)),
    (r"3[47]", (15,)),
    (r"6011|65|64[4-9]|62", (16, 17, 18, 19)),
    (r"35", (16,)),
    (r"3(?:0[0-5]|6|8)", (14,)),
)
CALLING_CODE = re.compile(
    r"7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69]\d|3[578]\d|42\d|5[09]\d|6[789]\d|8[05789]\d|9[67]\d|99[2-68]"
)
# 7 digits not far from each other, which every number has (") / " between two of them is the farthest); what every IBAN
# has behind its country
DIGITS = re.compile(r"[0-9](?:[ \u00a0./()-]{0,4}[0-9]){6}")
IBAN_DIGITS = re.compile(r"[0-9]{2}(?:[ -]?[A-Za-z0-9]){11}")
LOCAL = r"[\w.!#$%&*+/=?^`{|}~-]{1,64}"
LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"

# The first that finds something keeps it: a card's digits are no phone.
RECOGNISERS = (
    _Recogniser(
        "private key",
        ("PRIVATE KEY",),
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?s:(?!-----).){0,20000}(?:-----END [A-Z0-9 ]{0,40}-----)?"
        ),
        _all,
        is_secret=True,
    ),
    _Recogniser(
        "JWT",
        (".eyJ",),
        re.compile(r"(?<![\w-])eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,4000}", re.ASCII),
        _jwt,
        is_secret=True,
    ),
    _Recogniser("API key", ("sk-",), re.compile(r"(?<![\w-])sk-[\w-]{16,300}", re.ASCII), _key, is_secret=True),
    _Recogniser(
        "API key",
        ("hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox", "AIza", "glpat-", "k_live_"),
        re.compile(
            r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,80}|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{22,255}"
            r"|xox[abprs]-[\w-]{10,250}|AIza[\w-]{35}|glpat-[\w-]{20,60}|[rs]k_live_[A-Za-z0-9]{16,200})",
            re.ASCII,
        ),
        _all,
        is_secret=True,
    ),
    _Recogniser(
        "AWS key",
        ("AKIA", "ASIA"),
        re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
        _all,
        is_secret=True,
    ),
    _Recogniser(
        "AWS key",
        ("aws", "AWS", "Aws"),
        re.compile(
            r"(?i:aws[\w.-]{0,20}secret[\w.-]{0,20})[\"' :=]{1,5}(?P<it>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])", re.ASCII
        ),
        _all,
        is_secret=True,
    ),
    _Recogniser(
        "e-mail",
        ("@",),
        re.compile(rf"(?<![\w.!#$%&*+/=?^`{{|}}~-]){LOCAL}@(?:{LABEL}\.){{1,8}}(?:[^\W\d_]{{2,24}}|xn--[\w-]{{2,59}})"),
        _mail,
    ),
    _Recogniser(
        "IBAN",
        IBAN_DIGITS,
        re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,29}", re.ASCII),
        _iban,
    ),
    _Recogniser(
        "card",
        DIGITS,
        re.compile(r"(?<![\w.-])[2-6][0-9]{3}(?:[ -]?[0-9]){8,14}[0-9](?![\w-])(?!\.[0-9])", re.ASCII),
        _card,
    ),
    _Recogniser(
        "phone",
        DIGITS,
        re.compile(r"(?<![\w+.-])(?:\+|00(?=[1-9][0-9 ]{0,3}[ ./(-]))[1-9](?:[ \u00a0./()-]{0,3}[0-9]){7,16}(?![\w-])"),
        _international,
    ),
    _Recogniser(
        "phone",
        DIGITS,
        re.compile(
            r"(?<![\w.-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?[0-9]{3}[ .-]|[2-9][0-9]{2}([.-])[0-9]{3}\1)[0-9]{4}(?![\w-])"
        ),
        _all,
    ),
    _Recogniser(
        "phone",
        DIGITS,
        re.compile(
            r"(?<![\w.,:/+-])\(?0[1-9][0-9]{0,3}\)?(?:[ /-]{1,3}|\.)[0-9](?:[ ./-]?[0-9]){5,9}(?![\w:-])(?![.,][0-9])"
        ),
        _national,
    ),
    _Recogniser(
        "phone",
        DIGITS,
        re.compile(
            r"(?i)\b(?:tel|phone|mobile|cell|fax|whatsapp|telefon|handy)\b[^\d\n+(]{0,20}"
            r"(?P<it>[+(]?[0-9](?:[ ./()-]{0,3}[0-9]){6,16})(?![\w-])"
        ),
        _named,
    ),
)
KINDS = tuple(dict.fromkeys(one.kind for one in RECOGNISERS))
SECRETS = tuple(dict.fromkeys(one.kind for one in RECOGNISERS if one.is_secret))
PERSONAL = tuple(kind for kind in KINDS if kind not in SECRETS)
