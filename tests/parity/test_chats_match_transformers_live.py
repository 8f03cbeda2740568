"""Golden chats are what the installed transformers makes, and so are the ids of a chat."""

import json
import os

import chat_cases as cases
import pytest
from random_params import random_params

import jaxgen
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.text.session import open_session
from jaxgen.tokens.huggingface import HuggingFace

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")


def test_the_golden_chats_are_what_the_installed_transformers_makes():
    from make_golden_chats import outputs

    assert outputs() == json.loads(cases.GOLDEN.read_text(encoding="utf-8"))


def test_ids_of_a_chat_are_those_of_transformers(tmp_path):
    import tokenizers
    from tokenizers import AddedToken, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = ["<|im_start|>", "<|im_end|>", "<s>"]
    engine.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    config = jaxgen.ModelConfig(vocab_size=259, context=8, layers=1, d_model=8, heads=2)
    template = ChatTemplate(cases.TEMPLATES["chatml"], {})
    words = HuggingFace(engine.to_str().encode())
    jaxgen.save(
        *(tmp_path / "hub", config, random_params(config)),
        tokenizer=words,
        chat_template=template,
        layout="hf",
        family="gpt2",
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub")
    session = open_session(tmp_path / "hub")
    for messages in cases.CHATS.values():
        wanted = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert list(session.chat_ids(messages)) == wanted
