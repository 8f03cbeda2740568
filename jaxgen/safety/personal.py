"""Personal data in texts: patterns, and the checksums that tell a number from any other.

Cards: Luhn (ISO/IEC 7812) with the lengths of their networks. IBAN: ISO 13616, the length of its
country and the remainder by 97. Phone numbers: international ones of E.164, and those of the North
American plan. Keys: tokens whose issuers give them a beginning of their own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal["card", "iban", "email", "phone", "key"]

# Letters and digits of an IBAN, by country (the registry of SWIFT).
IBAN_LENGTHS = {
    code[:2]: int(code[2:])
    for code in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
        "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
        "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
        "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
        "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
    ).split()
}
# Numbers of cards: (beginning, lengths), as their networks publish them.
_CARDS = (
    (re.compile("4"), (13, 16, 19)),
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile("3[47]"), (15,)),
    (re.compile("6011|64[4-9]|65"), (16, 19)),
    (re.compile("30[0-5]|36|3[89]"), (14, 16, 19)),
    (re.compile("35(?:2[89]|[3-8])"), (16, 17, 18, 19)),
    (re.compile("62|81"), (16, 17, 18, 19)),
    (re.compile("50|5[6-9]|6[0-9]"), tuple(range(12, 20))),
)
_NORTH_AMERICAN = re.compile(r"(?:1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-]?)[2-9]\d\d[ .-]?\d{4}")


class Pattern(NamedTuple):
    """How personal data look, and whether a match is such."""

    expression: str
    check: Callable[[str], bool]


def _digits(text: str) -> str:
    return "".join(str(unicodedata.digit(one)) for one in text if one.isdecimal())


def luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of those before it."""
    doubled = (sum(divmod(2 * int(one), 10)) for one in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_card(text: str) -> bool:
    """Return whether digits, with blanks or hyphens between, are the number of a card."""
    digits = _digits(text)
    known = any(begin.match(digits) and len(digits) in lengths for begin, lengths in _CARDS)
    return known and luhn(digits)


def is_iban(text: str) -> bool:
    """Return whether a text is an IBAN, with blanks or hyphens between."""
    plain = unicodedata.normalize("NFKC", text)
    plain = "".join(one for one in plain if one.isalnum()).upper()
    if not plain.isascii() or len(plain) != IBAN_LENGTHS.get(plain[:2]):
        return False
    number = "".join(str(int(one, 36)) for one in plain[4:] + plain[:4])
    return int(number) % 97 == 1


def is_email(text: str) -> bool:
    """Return whether a text is an address: no dot first, last or twice, and labels of a host."""
    local, _, host = unicodedata.normalize("NFKC", text).rpartition("@")
    dots = not (local.startswith(".") or local.endswith(".") or ".." in local)
    labels = host.split(".")
    return dots and all(one and one[0] != "-" and one[-1] != "-" for one in labels)


def is_phone(text: str) -> bool:
    """Return whether a text is an international number, or one of the North American plan."""
    digits = _digits(text)
    if text.lstrip("(").startswith(("+", "00")):
        digits = digits.removeprefix("00") if text.startswith("00") else digits
        return 8 <= len(digits) <= 15 and not digits.startswith("0")
    return _NORTH_AMERICAN.fullmatch(unicodedata.normalize("NFKC", text)) is not None


def is_key(text: str) -> bool:
    """Return whether a text has the mixture of letters and digits that keys are drawn with."""
    return text.startswith("-----") or (any(map(str.isdigit, text)) and any(map(str.isalpha, text)))


_LETTERS = "[A-Za-z0-9_-]"
PATTERNS: dict[Kind, Pattern] = {
    "card": Pattern(r"\b\d(?:[ -]?\d){11,18}\b", is_card),
    "iban": Pattern(r"\b[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,29}\b", is_iban),
    "email": Pattern(
        r"\b[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,4}[A-Za-z]{2,24}\b", is_email
    ),
    "phone": Pattern(
        r"(?:\+|\b00|\B\(|\b)\d(?:[ ().-]{0,2}\d){7,14}\b", is_phone
    ),
    "key": Pattern(
        r"\b(?:sk-(?:proj-|ant-)?" + _LETTERS + r"{20,200}"
        r"|gh[pousr]_[A-Za-z0-9]{36,40}|github_pat_[A-Za-z0-9_]{40,100}|glpat-" + _LETTERS + r"{20}"
        r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza" + _LETTERS + r"{35}"
        r"|(?:xoxe\.)?xox[a-z]-[A-Za-z0-9%-]{10,250}"
        r"|xapp-\d-[A-Za-z0-9-]{10,200}|hooks\.slack\.com/[a-z]{5,12}/[A-Za-z0-9+/]{30,80}"
        r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,100}|hf_[A-Za-z0-9]{30,40}"
        r"|npm_[A-Za-z0-9]{36}|pypi-" + _LETTERS + r"{50,200}"
        r"|eyJ" + _LETTERS + r"{10,200}\." + _LETTERS + r"{10,200}\." + _LETTERS + r"{10,80})\b"
        r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----",
        is_key,
    ),
}  # fmt: skip
