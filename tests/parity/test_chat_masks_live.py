"""Masks of chats are those of TRL's training templates, as the installed transformers has them."""

import json
import re
from pathlib import Path

import pytest
import test_chat_masks as cases
from published_chats import CALL, TOOLS

from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.run.conversations import ChatEncoder
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.protocol import Special

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"
TRAINING = {path.stem.removesuffix("_training"): path for path in FOLDER.glob("*_training.jinja")}
CHATS = {
    "one": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    "two": [
        {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": " 6\n"},
    ],
    "system": [cases.CHAT[0], *cases.CHAT[1:3], {"role": "user", "content": "3+3?"}, cases.CHAT[4]],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "rain", "tool_call_id": "abcdef012"},
        {"role": "assistant", "content": "Wet."},
    ],
}  # fmt: skip
# Templates that TRL gives the opening of a turn to learn as well, or another end of it, or which
# it has changed so that thoughts of earlier turns stay.
OTHERWISE = ("deepseek", "glm4moe", "gptoss", "muse", "nemotron", "qwen2_5", "qwen3", "llava")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return (a tokenizer of transformers, ours) that knows the marks of all templates."""
    text = "".join(path.read_text() for path in FOLDER.glob("*.jinja"))
    found = re.findall(r"<[|\uff5c][\w\u2581]+[|\uff5c]>|<\w+_of_\w+>|<\|turn>|<turn\|>", text)
    from tokenizers import Tokenizer

    engine = Tokenizer.from_str(cases.words().decode())
    engine.add_special_tokens(sorted(set(found)))
    home = tmp_path_factory.mktemp("words")
    (home / "tokenizer.json").write_text(engine.to_str())
    about = cases.NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (home / "tokenizer_config.json").write_text(json.dumps(about))
    roles = lambda t: Special(bos=t.vocabulary()["<s>"], eos=t.vocabulary()["</s>"])  # noqa: E731
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(home)
    return theirs, HuggingFace(engine.to_str().encode(), roles)


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_the_mask_is_that_of_trl(both, name):
    theirs, ours = both
    compared, source = 0, TRAINING[name].read_text()
    for kind, chat in CHATS.items():
        tools = TOOLS if kind == "tools" else None
        try:
            wanted = theirs.apply_chat_template(
                chat, chat_template=source, tools=tools, return_dict=True,
                return_assistant_tokens_mask=True,
            )  # fmt: skip
        except Exception:
            continue
        expected = [(wanted["input_ids"], wanted["assistant_masks"])]
        record = {"messages": chat, **({"tools": tools} if tools else {})}
        found, note = ChatEncoder(ours, ChatTemplate(source, cases.NAMES)).examples(record)
        assert found == expected, kind
        compared += 1
        if not name.startswith(OTHERWISE) and kind != "tools":
            assert not note, kind
            plain = (FOLDER / f"{name}.jinja").read_text()
            found, _ = ChatEncoder(ours, ChatTemplate(plain, cases.NAMES)).examples(record)
            assert found == expected, kind
    assert compared >= 1 or name == "llava_next"  # which takes no texts alone
