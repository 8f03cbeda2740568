"""Languages that a translation model knows by tokens of their own: mBART, M2M-100 and NLLB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxgen.errors import ConfigError, nearest
from jaxgen.pretrained import hub_read
from jaxgen.pretrained.hub_tokenizer import tokenizer_about
from jaxgen.tokens import Tokenizer

# Where transformers' tokenizers put the code of a source: before the text, or behind its end; what
# the code of a target is to the decoder: its first token (start), or forced to be the next one.
Place = Literal["before", "after"]
Target = Literal["start", "forced"]
KINDS: dict[str, tuple[Place, Target, str]] = {
    "MBartTokenizer": ("after", "start", "en_XX"),
    "MBart50Tokenizer": ("before", "forced", "en_XX"),
    "NllbTokenizer": ("before", "forced", "eng_Latn"),
    "M2M100Tokenizer": ("before", "forced", "en"),
}
OWN = {"mbart": "MBartTokenizer", "m2m_100": "M2M100Tokenizer"}


@dataclass(frozen=True)
class Languages:
    """Ids of languages by their codes, as the files spell them, and where their tokens stand.

    source: of texts where nobody says another.
    """

    codes: Mapping[str, int]
    place: Place
    target: Target
    source: str
    eos: int | None

    def id_of(self, code: str, name: str, flag: str) -> int:
        """Return the id of a language; ConfigError with near ones if `name`=code (flag) is none.

        Of a code such as deu_Latn the part before the line is enough where no other begins so.
        """
        if code in self.codes:
            return self.codes[code]
        begun = [known for known in self.codes if known.partition("_")[0] == code]
        if len(begun) == 1:
            return self.codes[begun[0]]
        some = ", ".join(begun) or ", ".join(sorted(self.codes)[:6])
        hint = f"; there are {some}" if begun else nearest(code, self.codes) or f"; such as {some}"
        raise ConfigError(
            f"{name}={code!r:.40} ({flag}) is none of the model's {len(self.codes)} languages"
            f"{hint}; `jaxgen translate MODEL --languages` lists them"
        )

    def around(self, source: int) -> tuple[list[int], list[int]]:
        """Return the ids before and after a text in the language of this id."""
        end = [] if self.eos is None else [self.eos]
        return ([source], end) if self.place == "before" else ([], [*end, source])


def read_languages(home: Path, tokenizer: Tokenizer) -> Languages | None:
    """Return the languages of a Hugging Face folder; None if its tokenizer has no such tokens."""
    if not hub_read.is_hub(home) or not home.is_dir():
        return None
    about, kind = tokenizer_about(home)
    if kind not in KINDS:
        return None
    place, target, source = KINDS[kind]
    if about.get("legacy_behaviour"):
        place = "after"
    marks = getattr(tokenizer, "marks", list)()
    known = getattr(tokenizer, "vocabulary", dict)()
    codes = {
        mark.strip("_"): known[mark]
        for mark in marks
        if _is_code(mark) and known[mark] < tokenizer.vocab_size
    }
    if not codes:
        return None
    said: Any = about.get("src_lang")
    source = said if said in codes else source
    source = source if source in codes else min(codes)
    end: Any = about.get("eos_token", "</s>")
    end = end.get("content") if isinstance(end, dict) else end
    return Languages(codes, place, target, source, known.get(end, tokenizer.special.eos))


def _is_code(mark: str) -> bool:
    """Return whether a special piece is a language: __en__, en_XX or eng_Latn."""
    first, line, last = mark.strip("_").partition("_")
    if mark.startswith("__"):
        return mark.endswith("__") and first.isalpha() and not line
    return bool(line) and first.islower() and last[:1].isupper() and last.isalpha()
