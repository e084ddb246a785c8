"""Secrets and personal data are found where they are, by their sums, and not where they are not."""

from __future__ import annotations

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.sensitive import IBAN_LENGTHS, KINDS, PERSONAL, SECRETS, find

ALNUM = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
texts = st.text(st.characters(codec="utf-8") | st.sampled_from("@+0123456789 -().AE\u00a0"), max_size=200)


def kinds(text: str) -> list[str]:
    return [one.kind for one in find(text)]


def iban_of(country: str, account: str) -> str:
    """An IBAN whose check digits are right."""
    rest = "".join(str(int(sign, 36)) for sign in f"{account}{country}00")
    return f"{country}{98 - int(rest) % 97:02d}{account}"


def with_luhn(digits: str) -> str:
    """The digits and the one that makes their Luhn sum right."""
    total = 0
    for place, sign in enumerate(reversed(digits)):
        value = int(sign) * (2 if place % 2 == 0 else 1)
        total += value - 9 * (value > 9)
    return f"{digits}{-total % 10}"


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@st.composite
def ibans(draw: st.DrawFn) -> str:
    country = draw(st.sampled_from(sorted(IBAN_LENGTHS)))
    size = IBAN_LENGTHS[country] - 4
    return iban_of(country, draw(st.text(st.sampled_from(ALNUM), min_size=size, max_size=size)))


@given(ibans(), st.booleans())
def test_every_iban_with_the_right_sum_is_found_whole(iban: str, grouped: bool) -> None:
    shown = " ".join(iban[place : place + 4] for place in range(0, len(iban), 4)) if grouped else iban
    text = f"Transfer it to {shown}, as agreed."
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [("IBAN", shown)]


@given(ibans(), st.data())
def test_an_iban_with_one_wrong_digit_is_none(iban: str, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([place for place, sign in enumerate(iban) if sign.isdigit()]))
    other = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != iban[place]]))
    assert "IBAN" not in kinds(f"It is {iban[:place]}{other}{iban[place + 1 :]} here")


@given(st.sampled_from(["4", "51", "2221", "37", "6011"]), st.data())
def test_a_card_is_found_by_issuer_length_and_sum(begins: str, data: st.DataObject) -> None:
    size = (15 if begins == "37" else 16) - len(begins) - 1
    number = with_luhn(begins + data.draw(st.text(st.sampled_from("0123456789"), min_size=size, max_size=size)))
    spaced = " ".join(number[place : place + 4] for place in range(0, len(number), 4))
    for shown in (number, spaced):
        text = f"Paid with {shown} today"
        assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [("card", shown)]
    wrong = f"{number[:-1]}{(int(number[-1]) + 1) % 10}"
    assert "card" not in kinds(f"Paid with {wrong} today")


@pytest.mark.parametrize(
    "number",
    [
        "+49 30 901820",
        "+1 212-555-0123",
        "+44 (0)20 7946 0958",
        "0044 20 7946 0958",
        "(555) 123-4567",
        "212-555-0123",
        "415.555.0199",
        "020 7946 0958",
        "0171/2345678",
        "01 23 45 67 89",
        "(030) 901820-12",
        "(0351) / 654321",
    ],
)
def test_a_phone_is_found_as_people_write_it(number: str) -> None:
    text = f"Call me on {number}, please."
    (found,) = find(text)
    assert found.kind == "phone"
    assert text[found.start : found.end].strip("()") in number
    assert len(number) - (found.end - found.start) <= 1


@pytest.mark.parametrize("text", ["tel. 555 0123", "my phone is 9018 2012", "Fax: 901820-12"])
def test_a_number_that_is_named_as_a_phone_is_one(text: str) -> None:
    assert kinds(text) == ["phone"]


@pytest.mark.parametrize(
    "text",
    [
        "It happened on 01.02.2024 12:30 and again on 2024-05-06 at 08:30:00.",
        "3 + 49 = 52, and 12345678 + 90123456 is 102469134.",
        "Order 100-2003-44 of 5 items, 1,299.00 each; part no. 0012345678.",
        "Version 10.15.7.2024, build 192.168.10.1, 0.123456789 and 1e-10.",
        "05 10 15 20 25 30 35 40",
        "See icon@2x.png, @app.route, lodash@4.17.21 and a @ b.",
        "<div class='sk-fading-circle-container'>",
        "The header is eyJub3QgYSBqd3Q and nothing else.",
        "My phone has 128 gigabytes and cost 999 dollars in 2024.",
        "phone 12, then 14, then 16 and 18",
    ],
)
def test_numbers_that_belong_to_nobody_are_left_alone(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("API key", "sk-" + "proj-" + "aB3" * 12),
        ("API key", "hf_" + "Ab" * 17),
        ("API key", "ghp_" + "x1" * 18),
        ("AWS key", "AKIA" + "IOSFODNN7EXAMPLE"),
        ("JWT", ".".join([part({"alg": "HS256"}), part({"sub": "1234567890"}), "s" * 43])),
        (
            "private key",
            "-----BEGIN RSA " + "PRIVATE KEY-----\nDEK-Info: AES-128-CBC,0\n\nMIIE\n-----END RSA PRIVATE KEY-----",
        ),
        ("private key", "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBg\nand then it breaks off"),
    ],
)
def test_a_secret_is_found_whole(kind: str, secret: str) -> None:
    text = f"It is: {secret}"
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [(kind, secret)]
    assert kind in SECRETS


def test_the_secret_key_of_an_aws_account_is_found_behind_its_name() -> None:
    value = "wJalrXUtnFEMI/" + "K7MDENG/bPxRfiCYEXAMPLEKEY"
    text = f'aws_secret_access_key = "{value}"'
    assert [text[one.start : one.end] for one in find(text)] == [value]


def test_what_only_looks_like_a_token_is_none() -> None:
    not_signed = ".".join([part({"typ": "x"}), part({"sub": "1"}), "s" * 43])
    assert find(f"It is {not_signed}") == []


@given(
    st.from_regex(r"[a-z][a-z0-9_]{0,10}(\.[a-z0-9]{1,8})?", fullmatch=True),
    st.from_regex(r"[a-z0-9]{1,10}\.(com|de|museum)", fullmatch=True),
)
def test_an_address_is_found_whole(name: str, domain: str) -> None:
    text = f"Write to <{name}@{domain}>."
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [("e-mail", f"{name}@{domain}")]


@given(texts)
def test_what_is_found_lies_in_the_text_in_order_and_does_not_overlap(text: str) -> None:
    found = find(text)
    assert all(0 <= one.start < one.end <= len(text) and one.kind in KINDS for one in found)
    assert all(one.end <= other.start for one, other in pairwise(found))


@pytest.mark.parametrize(
    "sign", ["a", "@", "a@", "0", "0 ", "+1", "eyJ.", "-----BEGIN PRIVATE KEY", "a.", "DE89 ", "(0"]
)
def test_a_hostile_text_takes_no_time(sign: str) -> None:
    assert isinstance(find("@ PRIVATE KEY .eyJ sk- +1 " + sign * 10_000), list)


def test_each_kind_is_a_secret_or_personal() -> None:
    assert set(KINDS) == {*SECRETS, *PERSONAL}
    assert not set(SECRETS) & set(PERSONAL)
