"""Folders of every published shape give the ids and texts that the installed transformers gives."""

import os

import pytest
import tokenizer_folders as cases

from jaxgen.pretrained import hub_read
from jaxgen.pretrained.assets import has_tokenizer, read_tokenizer

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", cases.FOLDERS)
def test_ids_and_texts_are_those_of_transformers(tmp_path, name):
    cases.FOLDERS[name](tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert has_tokenizer(tmp_path)
    ours = read_tokenizer(tmp_path)
    before, after = ours.around()
    for text in cases.TEXTS:
        marked = ours.encode_marked(text)
        assert marked == theirs(text, add_special_tokens=False)["input_ids"], text
        assert [*before, *marked, *after] == theirs(text)["input_ids"], text
        split = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == split, text
        assert ours.decode(marked) == theirs.decode(marked, skip_special_tokens=True), text
    both = theirs("hello there", "the cats sat")
    (row,) = ours.windows("hello there", "the cats sat", 64, 0)
    assert row.ids == both["input_ids"]
    if hub_read.read_config(tmp_path)[1].embed.types > 1:
        assert row.types == both.get("token_type_ids", [0] * len(row.ids))
    named = {k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)}
    assert ours.roles == named
