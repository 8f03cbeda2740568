"""Chats of every kind give the texts and ids that the installed transformers gives."""

import json
import os

import published_chats as cases
import pytest
from chat_cases import TEMPLATES as MORE

from jaxgen.errors import UserError
from jaxgen.pretrained.chat_template import encode_chat, read_chat_template, render_chat
from jaxgen.tokens.huggingface import HuggingFace

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def words():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([*NAMES.values(), *cases.MARKS])
    engine.add_tokens([AddedToken(name, normalized=False) for name in cases.ORDINARY])
    return engine.to_str()


def folder(home, words, template):
    (home / "tokenizer.json").write_text(words)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (home / "tokenizer_config.json").write_text(json.dumps(NAMES | about))
    return home


def both(home, words, messages, **values):
    """Return ((text, ids) of transformers, or None where it fails, and ours)."""
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(home)
    template, ours = read_chat_template(home), HuggingFace(words.encode())
    try:
        wanted = (
            theirs.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **values
            ),
            theirs.apply_chat_template(messages, add_generation_prompt=True, **values)["input_ids"],
        )
    except Exception:
        wanted = None
    try:
        found = (
            render_chat(template, messages, **values),
            encode_chat(template, ours, messages, **values),
        )
    except UserError:
        found = None
    return wanted, found


@pytest.mark.parametrize("name", {**cases.TEMPLATES, **MORE})
def test_texts_and_ids_are_those_of_transformers(tmp_path, words, name):
    home = folder(tmp_path, words, {**cases.TEMPLATES, **MORE}[name])
    rendered = 0
    for messages in cases.CHATS.values():
        for values in cases.VALUES.values():
            wanted, found = both(home, words, messages, **values)
            assert found == wanted, (messages, values)
            rendered += wanted is not None
    assert rendered >= 6


@pytest.mark.parametrize("name", ["gemma 3", "qwen 2.5", "zephyr"])
def test_parts_of_texts_are_one_text_where_a_template_knows_no_parts(tmp_path, words, name):
    home = folder(tmp_path, words, cases.TEMPLATES[name])
    wanted, found = both(home, words, cases.PARTS)
    if name == "gemma 3":
        assert found == wanted
    joined = [{"role": "user", "content": "Hello you"}]
    text = render_chat(read_chat_template(home), joined)
    assert found is not None and found[0].replace("Helloyou", "Hello you") == text


def test_templates_of_several_names_are_chosen_as_transformers_does(tmp_path, words):
    named = {"default": "zephyr", "tool_use": "qwen 2.5", "rag": "vicuna"}
    listed = [{"name": k, "template": cases.TEMPLATES[v]} for k, v in named.items()]
    home = folder(tmp_path, words, listed)
    for values in cases.VALUES.values():
        wanted, found = both(home, words, cases.CHATS["one"], **values)
        assert wanted is not None and found == wanted
    # Files come before the config.
    (home / "additional_chat_templates").mkdir()
    (home / "additional_chat_templates/tool_use.jinja").write_text(cases.TEMPLATES["granite"])
    for main in ("olmo 2", "phi 4"):
        (home / "chat_template.jinja").write_text(cases.TEMPLATES[main])
        for values in cases.VALUES.values():
            wanted, found = both(home, words, cases.CHATS["one"], **values)
            assert wanted is not None and found == wanted
