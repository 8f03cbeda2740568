"""What a character may stand for: the folding table that rules are read with.

Built from the Unicode data of the standard library (`unicodedata`): compatibility forms (full
width, mathematical, circled, ligatures), case folding, accents and other marks, letters whose name
says LATIN ... LETTER X (strokes, hooks, small capitals, regional indicators), and format
characters, which count as nothing. Two lists of our own follow: letters of other scripts that look
Latin, and leetspeak.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Literal, get_args

Fold = Literal["full", "plain", "none"]
FOLDS: tuple[Fold, ...] = get_args(Fold)

# Characters of other scripts that are taken for the Latin letter at the beginning of their line.
LOOKALIKES = """
aаɑα⍺Ꭺ bьЬвЪβᏏ cсϲᏟⅽ dԁɗᎠⅾ eеєҽεᎬ fғϝ gɡԍᏀ hһнᎻ iіıιϊӏᎥ jјϳᎫ kкκӄĸᏦ lӏǀІι|Ꮮ mмϻᎷⅿ nпηոᏁ oоοσօ०০੦૦௦᧐Ꭴ
pрρᏢ qԛգ rгᴦᎡ sѕꜱᏚ tтτᎢ uυսц vνѵᏙⅴ wԝωшᎳ xхχ×ⅹ yуγүҮᎩ zᴢᏃ
"""
LEET = """
a4@ b8 c( e3€ g69 h# i1!| l1|£ o0 s5$ t7+ z2
"""
# Scripts that are written without blanks between words: Thai, Lao and Tibetan, Burmese, Khmer, the
# marks and kana of Japanese, Chinese, Yi, and half-width kana.
UNSPACED = (
    *((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x312F)),
    *((0x31A0, 0x31FF), (0x3400, 0x9FFF), (0xA000, 0xA4CF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F)),
    *((0x17000, 0x18CFF), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF)),
)
INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5")  # letters by category, but blank
_NAMED = re.compile(
    r"(?:LATIN|REGIONAL INDICATOR SYMBOL|(?:NEGATIVE )?(?:SQUARED|CIRCLED) LATIN)"
    r"(?: CAPITAL| SMALL)? (?:LETTER|LIGATURE)(?: SMALL CAPITAL| CAPITAL| DOTLESS)*"
    r" ([A-Z]{1,2})(?: WITH .*)?"
)


def _read(table: str) -> dict[str, set[str]]:
    read: dict[str, set[str]] = {}
    for letter, *others in table.split():
        for other in others:
            read.setdefault(other, set()).add(letter)
    return read


_LOOKALIKES, _LEET = _read(LOOKALIKES), _read(LEET)


def is_word(symbol: str) -> bool:
    r"""Return whether a character is one of a word, as \w has it."""
    return symbol.isalnum() or symbol == "_"


def in_word(symbol: str) -> bool:
    """Return whether a character belongs to a word whose ends show: no blanks, no end of words."""
    point = ord(symbol)
    spaced = point < UNSPACED[0][0] or not any(low <= point <= high for low, high in UNSPACED)
    return spaced and is_word(symbol)


def folded(character: str) -> str:
    """Return a character's own folded form: without case, accent and width; "" for a mark."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(_base(one) for one in text if not _is_mark(one))


def readings(character: str, fold: str) -> frozenset[str]:
    """Return the texts that a character may stand for under a folding, "" for nothing at all.

    full: without case, accents and width, and what it looks like or is leetspeak for; plain: its
    compatibility form, and nothing for what is invisible; none: itself.
    """
    if fold == "none":
        return frozenset((character,))
    return (_full if fold == "full" else _plain)(character)


def folds_to_itself(character: str) -> bool:
    """Return whether a character stands for itself alone, under every folding."""
    cased = character.lower() != character or character.upper() != character
    own = frozenset((character,))
    # Not remembered: there are too many of them.
    return not cased and _full.__wrapped__(character) == own == _plain.__wrapped__(character)


@cache
def _plain(character: str) -> frozenset[str]:
    if _is_invisible(character):
        return frozenset(("",))
    form = unicodedata.normalize("NFKC", character)
    return frozenset((character, form if len(form) == 1 else character))


@cache
def _full(character: str) -> frozenset[str]:
    own = folded(character)
    if not own:
        return frozenset(("",))
    likely = {own}
    for one in {character, character.casefold(), own}:
        likely |= _LOOKALIKES.get(one, set()) | _LEET.get(one, set())
    if character == "I":  # a capital i is drawn as a small l
        likely.add("l")
    return frozenset(likely)


def _is_invisible(character: str) -> bool:
    variant = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    joiner = character in INVISIBLE or character in "\u034f\u180b\u180c\u180d\u180f"
    category = unicodedata.category(character)
    control = category == "Cc" and not character.isspace()  # NUL, backspace: nothing is drawn
    return variant or joiner or control or category == "Cf"


def _is_mark(character: str) -> bool:
    return _is_invisible(character) or unicodedata.category(character) in ("Mn", "Me")


def _base(character: str) -> str:
    if character.isascii():
        return character
    named = _NAMED.fullmatch(unicodedata.name(character, ""))
    return named[1].lower() if named else character
