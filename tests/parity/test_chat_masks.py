"""What is learnt of a chat laid by published templates: the assistant's turns, as asked for."""

import pytest
from chat_cases import TEMPLATES as MORE
from published_chats import CALL, MARKS, ORDINARY, TEMPLATES, TOOLS

from jaxgen.pretrained.chat_template import ChatTemplate, encode_chat
from jaxgen.run.conversations import ChatEncoder, RecordEncoder
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.protocol import Special

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"},
    {"role": "user", "content": "3+3? </s>"},
    {"role": "assistant", "content": "6"},
]
THOUGHT = "<think>\nadd\n</think>\n\n4"
# What is learnt, an example a list; where one string stands, the two turns are THOUGHT and 6 in it.
LEARNT = {
    "qwen 2.5": "{}<|im_end|>\n",
    "qwen 3": [[THOUGHT + "<|im_end|>\n"], ["<think>\n\n</think>\n\n6<|im_end|>\n"]],
    "llama 2": " {} </s>",
    "llama 3.1": "{}<|eot_id|>",
    "gemma 3": "{}<end_of_turn>\n",
    "mistral tools": " {}</s>",
    "zephyr": "\n{}</s>",
    "phi 3": [[THOUGHT + "<|end|>\n", "6<|end|>\n</s>"]],
    "phi 4": "{}<|im_end|>",
    "deepseek r1": [["\n\n4</s>", "6</s>"]],
    "command r": "{}<|END_OF_TURN_TOKEN|>",
    "vicuna": " {}</s>",
    "granite": "{}<|end_of_text|>\n",
    "openchat": " {}<|end_of_turn|>",
    "gpt-oss": "<|channel|>final<|message|>{}<|return|>",
    "olmo 2": "{}</s>",
    "smollm 2": "{}<|im_end|>\n",
    "smolvlm": " {}<end_of_utterance>\n",
    "exaone": "{}[|endofturn|]\n",
    "glm 4": [[THOUGHT + "</s>"], ["6</s>"]],  # no mark of its own ends a turn
    "alpaca": [[THOUGHT + "\n\n</s>"], ["6\n\n</s>"]],
    "tulu": "{}</s>",
    "smollm 3": [["<|im_start|>assistant\n4<|im_end|>\n", "<|im_start|>assistant\n6<|im_end|>\n"]],
    "chatml": "{}<|im_end|>\n",
    "headers": "{}<|eot_id|>",
    "turns": "{}<end_of_turn>\n\n",
    "instructions": " {}</s>",
}
NO_SYSTEM = ("mistral tools", "turns", "instructions")


def words():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([*NAMES.values(), *MARKS])
    engine.add_tokens([AddedToken(name, normalized=False) for name in ORDINARY])
    return engine.to_str().encode()


@pytest.fixture(scope="module")
def tokenizer():
    roles = lambda t: Special(bos=t.vocabulary()["<s>"], eos=t.vocabulary()["</s>"])  # noqa: E731
    return HuggingFace(words(), roles)


def learnt(tokenizer, example):
    """Return what is learnt of an example, one text a run of the mask, with its marks."""
    pieces = {i: piece for piece, i in tokenizer.vocabulary().items()}
    ids, mask = example
    shown = [pieces[i] if one else "\0" for i, one in zip(ids, mask, strict=True)]
    runs = "".join(shown).replace("Ġ", " ").replace("Ċ", "\n").split("\0")
    return [run for run in runs if run]


def examples_of(tokenizer, source, chat, **more):
    encoder = ChatEncoder(tokenizer, ChatTemplate(source, NAMES))
    return encoder.examples({"messages": chat, **more})


@pytest.mark.parametrize("name", LEARNT)
def test_the_turns_of_the_assistant_are_learnt_with_their_ends(tokenizer, name):
    chat = CHAT[name in NO_SYSTEM :]
    source, expected = {**TEMPLATES, **MORE}[name], LEARNT[name]
    if isinstance(expected, str):
        expected = [[expected.format(THOUGHT), expected.format("6")]]
    examples, note = examples_of(tokenizer, source, chat)
    assert [learnt(tokenizer, example) for example in examples] == expected
    assert bool(note) == (name == "smollm 3")
    if note:
        return
    # Each turn stands after the very ids that it is asked with, up to how it is opened.
    asked = [encode_chat(ChatTemplate(source, NAMES), tokenizer, chat[:n]) for n in (-3, -1)]
    begins = [
        ids[:at]
        for ids, mask in examples
        for at in range(1, len(mask))
        if mask[at] and not mask[at - 1]
    ]
    for prompt, begin in zip(asked, begins, strict=True):
        opened = len(begin) - (name in ("deepseek r1",))
        assert begin == prompt[: len(begin)] and len(prompt) - opened < 10


def test_a_call_is_learnt_and_what_the_tool_says_is_not(tokenizer):
    chat = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "abcdef012"},
        {"role": "assistant", "content": "Wet."},
    ]
    (example,), _ = examples_of(tokenizer, TEMPLATES["qwen 2.5"], chat, tools=TOOLS)
    call, said = learnt(tokenizer, example)
    assert call.endswith('"Bonn"}}\n</tool_call><|im_end|>\n') and said == "Wet.<|im_end|>\n"
    assert "rain" in tokenizer.decode(example[0]) and "weather" in tokenizer.decode(example[0])


@pytest.mark.parametrize(
    ("name", "chat", "part"),
    [("turns", CHAT, "System role not supported"),
     ("reversed", CHAT[1:3], "changes what comes before message 1 once it is there"),
     ("instructions", CHAT, "changes what comes before message 2 once it is there"),
     ("llama 2", CHAT[1:3] * 2 + CHAT[2:3], "Roles must alternate")],
)  # fmt: skip
def test_a_chat_that_a_template_can_not_lay_is_refused(tokenizer, name, chat, part):
    import json

    encoder = ChatEncoder(tokenizer, ChatTemplate({**TEMPLATES, **MORE}[name], NAMES))
    (refused,) = RecordEncoder(tokenizer, encoder, "chat").encode_records(
        [json.dumps({"messages": chat})]
    )
    assert part in refused.line
