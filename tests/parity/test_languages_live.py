"""Languages of mBART, M2M-100 and NLLB: sources have the ids that transformers gives them."""

import os

import pytest
import tokenizer_folders as cases

from jaxgen.errors import ConfigError
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.pretrained.languages import read_languages
from jaxgen.run import initial

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
TEXTS = ["hello there, how are you?", "  two  spaces and a cat.", "the Stra\u00dfe 12"]


@pytest.mark.parametrize("name", cases.OF_LANGUAGES)
def test_sources_in_a_language_have_the_ids_of_transformers(tmp_path, name):
    cases.OF_LANGUAGES[name](tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path)
    languages = read_languages(tmp_path, ours)
    assert languages is not None and languages.source == theirs.src_lang
    for code in (languages.source, *sorted(languages.codes)[:2]):
        theirs.src_lang = code
        before, after = languages.around(languages.codes[code])
        for text in TEXTS:
            assert [*before, *ours.encode(text), *after] == theirs(text)["input_ids"], (code, text)
    ids = theirs(TEXTS[0])["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_language_is_found_by_what_tells_it_apart(tmp_path):
    cases.OF_LANGUAGES["nllb"](tmp_path)
    languages = read_languages(tmp_path, read_tokenizer(tmp_path))
    assert languages.id_of("deu", "target", "--to") == languages.codes["deu_Latn"]
    with pytest.raises(ConfigError, match=r"--to.*there are zho_Hans, zho_Hant.*--languages"):
        languages.id_of("zho", "target", "--to")
    with pytest.raises(ConfigError, match=r"source='eng_Lat' .*eng_Latn"):
        languages.id_of("eng_Lat", "source", "--from")


def test_training_says_that_it_adds_no_languages(tmp_path):
    cases.OF_LANGUAGES["nllb"](tmp_path)
    with pytest.warns(UserWarning, match="tokens of their languages, which training does not add"):
        initial.tokenizer_of(tmp_path)
