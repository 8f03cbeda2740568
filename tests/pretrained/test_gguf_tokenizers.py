"""The tokenizer of a GGUF file gives the ids of the tokenizer that the file was made of."""

import io
import json

import gguf_files
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from jaxgen.errors import CheckpointError
from jaxgen.pretrained import assets, gguf_tokenizer
from jaxgen.pretrained.generation_config import read_generation_config
from jaxgen.store import gguf
from jaxgen.tokens import modelproto

TEXTS = [
    "The quick brown fox doesn't jump; it's 12345 o'clock.  Two  spaces, 日本語 and naïve café.\n",
    "def f(x):\n    return x + 1234567  # ÜBER\n\n\n\tclass A: pass   ",
    "I'M HERE We'll see 3rd, 42% of 0x1F… (a.b) <|end|>",
    " leading 1 and trailing  ",
    "",
]
MAKER = (TEXTS * 3)[:-1]


def written(path, metadata, rows=400):
    shapes = {"token_embd.weight": ("F16", (rows, 32))}
    about = {"general.architecture": "llama", **metadata}
    gguf.write_gguf(path, about, shapes, lambda name: np.zeros((rows, 32), np.float16))
    return path


def bytes_tokenizer(cuts):
    """A byte-level BPE of the `tokenizers` library that cuts words as `cuts` says."""
    engine = tokenizers.Tokenizer(models.BPE())
    steps = [
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if cut == gguf_tokenizer.GPT2
        else pre_tokenizers.Split(tokenizers.Regex(cut), "isolated")
        for cut in cuts
    ]
    if gguf_tokenizer.GPT2 not in cuts:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
    engine.decoder = tokenizers.decoders.ByteLevel()
    engine.train_from_iterator(
        MAKER,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|end|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    engine.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    return engine


PRES = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-v3", "bloom"]


@pytest.mark.parametrize("pre", PRES)
def test_a_byte_level_tokenizer_gives_the_ids_that_it_gave(tmp_path, pre):
    engine = bytes_tokenizer(gguf_tokenizer.CUTS[pre])
    metadata = gguf_files.gpt2_tokenizer(json.loads(engine.to_str()), pre, eos_token_id=0)
    more = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.padding_token_id": np.uint32(1)}
    read = assets.read_tokenizer(written(tmp_path / "m.gguf", metadata | more))
    for text in TEXTS:
        ids = engine.encode(text, add_special_tokens=False).ids
        assert read.encode_marked(text) == ids
        assert read.decode(read.encode(text)) == text  # without marks
    assert read.encode_marked("a<think>b<|end|>") == engine.encode("a<think>b<|end|>").ids
    assert (read.special.eos, read.special.pad, read.special.bos) == (0, 1, None)
    assert read.around() == ([], [])
    assert set(read.marks()) == {"<|end|>", "<|pad|>"}


@pytest.mark.parametrize("add", [True, False])
def test_bos_and_eos_come_where_the_file_says_so(tmp_path, add):
    metadata = gguf_files.gpt2_tokenizer(
        json.loads(bytes_tokenizer((gguf_tokenizer.GPT2,)).to_str()),
        bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    flags = {"tokenizer.ggml.add_bos_token": add, "tokenizer.ggml.add_eos_token": add}
    read = assets.read_tokenizer(written(tmp_path / "m.gguf", metadata | flags))
    assert read.around() == (([1], [0]) if add else ([], []))


@pytest.mark.parametrize(
    ("pre", "begins"), [("llama-bpe", True), ("glm4", False), ("gpt-2", False)]
)
def test_texts_begin_with_bos_where_llama_cpp_has_it_of_the_name(tmp_path, pre, begins):
    about = json.loads(bytes_tokenizer((gguf_tokenizer.GPT2,)).to_str())
    metadata = gguf_files.gpt2_tokenizer(about, pre, bos_token_id=1, eos_token_id=0)
    read = assets.read_tokenizer(written(tmp_path / "m.gguf", metadata))
    assert read.around() == (([1], []) if begins else ([], []))


def sentencepiece_model(**about):
    trained = io.BytesIO()
    pytest.importorskip("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(MAKER * 4), model_writer=trained, vocab_size=340, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=1.0, minloglevel=2, **about,
    )  # fmt: skip
    return trained.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
def test_a_llama_tokenizer_gives_the_ids_of_sentencepiece(tmp_path, prefix):
    import sentencepiece

    model = sentencepiece_model(add_dummy_prefix=prefix)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    flag = {"tokenizer.ggml.add_space_prefix": prefix}
    metadata = gguf_files.llama_tokenizer(modelproto.read_proto(model), **flag)
    read = assets.read_tokenizer(written(tmp_path / "m.gguf", metadata))
    for text in TEXTS:
        if not (prefix and text.startswith(" ")):  # where Llama's own puts no second one
            assert read.encode(text) == theirs.encode(text)
            assert read.decode(read.encode(text)) == text
    assert read.around() == ([1], [])  # as llama.cpp does where a file says nothing
    assert (read.special.bos, read.special.eos) == (1, 2)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the quick ##er fox ##es , . 1 ##2 ##3 cafe o ' clock"


@pytest.mark.parametrize("cased", [False, True])
def test_a_bert_tokenizer_gives_the_ids_of_its_words(tmp_path, cased):
    words = WORDS.split() + (["Quick"] if cased else [])
    metadata = gguf_files.bert_tokenizer(words) | {"general.architecture": "bert"}
    read = assets.read_tokenizer(written(tmp_path / "m.gguf", metadata))
    engine = tokenizers.BertWordPieceTokenizer(
        {word: i for i, word in enumerate(words)}, lowercase=not cased
    )
    for text in ("The Quicker foxes, 123. Café o'clock", "quick QUICK Quick"):
        assert read.encode(text) == engine.encode(text, add_special_tokens=False).ids
    assert read.around() == ([2], [3])
    assert (read.special.bos, read.special.eos, read.special.pad) == (2, 3, 0)


def gpt2(**more):
    engine = bytes_tokenizer((gguf_tokenizer.GPT2,))
    metadata = gguf_files.gpt2_tokenizer(json.loads(engine.to_str()), eos_token_id=0)
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def tokens(change):
    metadata = gpt2()
    metadata["tokenizer.ggml.tokens"] = change(list(metadata["tokenizer.ggml.tokens"]))
    return metadata


LIES = {
    "unknown model": (lambda: gpt2(model="rwkv"), "model='rwkv' is not read; known are gpt2"),
    "unknown pre": (lambda: gpt2(pre="smolm"), "pre='smolm' is not known.*did you mean 'smollm'"),
    "tokens a number": (lambda: gpt2(tokens=np.uint32(3)), "tokens is no list of texts"),
    "tokens numbers": (lambda: gpt2(tokens=np.arange(3)), "tokens is no list of texts"),
    "token twice": (lambda: tokens(lambda t: [*t[:-1], t[5]]), "twice"),
    "no merges": (lambda: gpt2(merges=np.arange(2)), "merges is no list of texts"),
    "merge of three": (lambda: gpt2(merges=["a b c"]), "'a b c' is no merge of two pieces"),
    "merge of strangers": (lambda: gpt2(merges=["日 本"]), "m.gguf: "),
    "kinds too few": (lambda: gpt2(token_type=np.ones(3, np.int32)), "one number for each"),
    "eos outside": (lambda: gpt2(eos_token_id=np.uint32(10**6)), "eos_token_id=1000000 is no id"),
    "eos a text": (lambda: gpt2(eos_token_id="0"), "eos_token_id='0' is no id"),
    "a piece fewer": (lambda: tokens(lambda t: t[:-1]), "m.gguf: "),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "part"), LIES.values(), ids=LIES)
def test_a_vocabulary_that_lies_is_refused_in_one_line(tmp_path, metadata, part):
    path = written(tmp_path / "m.gguf", metadata())
    with pytest.raises(CheckpointError, match=part) as error:
        assets.read_tokenizer(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_file_says_how_turns_end_and_how_it_is_sampled_and_laid(tmp_path):
    sampling = {
        "general.sampling.temp": np.float32(0.3),
        "general.sampling.top_k": np.int32(7),
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
        "tokenizer.chat_templates": ["tool_use"],
    }
    more = gpt2(eot_token_id=np.uint32(1), bos_token_id=np.uint32(1))
    read = assets.read_assets(path := written(tmp_path / "m.gguf", more | sampling))
    config = read.generation_config
    assert config.eos_token_id == (0, 1) and config.bos_token_id == 1
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.3, 7, None, None)
    used = read_generation_config(path, unsaid=True)[0]  # as llama.cpp would sample
    assert (used.temperature, used.top_k, used.top_p, used.min_p) == (0.3, 7, 0.95, 0.05)
    assert read.chat_template is not None and read.chat_template.source == "{{ messages }}"
    assert read.chat_template.others == {"tool_use": "{{ tools }}"}
    assert read.chat_template.names == {"bos_token": "<|pad|>", "eos_token": "<|end|>"}
    assert not read.dropped
