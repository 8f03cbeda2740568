"""A model written as a GGUF file is read again as it was, and llama.cpp makes its texts of it."""

import io
import json
import re
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from random_params import random_params
from test_gguf_models import LATER, MODELS
from test_gguf_tokenizers import TEXTS, bytes_tokenizer, sentencepiece_model

import jaxgen
from jaxgen import tokens, tree
from jaxgen.cli import app, start
from jaxgen.errors import ConfigError
from jaxgen.models.families import FAMILIES
from jaxgen.models.families.resolved import differences
from jaxgen.pretrained import assets, gguf_tokenizer
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.store import gguf
from jaxgen.tokens import Special, TokenizerSettings, modelproto, pipelines
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.pieces import Pieces
from jaxgen.tokens.pipelines import SPACE


def model(name, **changes):
    family = FAMILIES[name.partition("-")[0]]
    config = family.read({"model_type": family.model_type, **(MODELS | LATER)[name], **changes})
    config = config.replace(head="none") if config.head == "pooled" else config
    return config, random_params(config)


@pytest.mark.parametrize("name", [*MODELS, *LATER])
def test_a_model_of_float32_is_read_again_to_the_last_bit(tmp_path, name):
    config, params = model(name)
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf")
    again, found = jaxgen.load(tmp_path / "m.gguf")
    assert differences(config, again) == []
    # Whose 1 + w is rounded in the file.
    close = 2e-7 if name.startswith(("gemma", "qwen3_next", "qwen3_5")) else 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 0, close), found, params)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-4), ("bfloat16", 1e-3),
                                              ("q8_0", 1e-3), ("q4_0", 2e-2)])  # fmt: skip
def test_matrices_are_in_the_format_that_is_asked_for(tmp_path, dtype, error):
    config, params = model("llama")
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf", dtype=dtype)
    forms = {n: t.dtype for n, t in gguf.open_file(tmp_path / "m.gguf").tensors.items()}
    wanted = {"float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    assert forms["blk.0.ffn_up.weight"] == wanted and forms["blk.0.attn_norm.weight"] == "F32"
    assert forms["token_embd.weight"] == ("Q8_0" if dtype == "q4_0" else wanted)
    found = jaxgen.load(tmp_path / "m.gguf", dtype="float32")[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 0, error), found, params)


def test_what_is_written_is_written_again_bit_for_bit(tmp_path):
    config, params = model("llama")
    for dtype in ("float32", "q8_0"):
        jaxgen.save(tmp_path / "a.gguf", config, params, layout="gguf", dtype=dtype)
        again = jaxgen.load(tmp_path / "a.gguf")
        jaxgen.save(tmp_path / "b.gguf", *again, layout="gguf", dtype=dtype)
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
        (tmp_path / "a.gguf").unlink(), (tmp_path / "b.gguf").unlink()


LONG = ["def add(a, b):\n    return a + b  # naïve café 12345\n\n\nclass Ünïcödé:\n\tpass\n"]
LONG += [
    "The quick brown fox jumps over the lazy dog.  The dog doesn't care, 日本語 is here.\n" * 3
]


def made(kind):
    if kind == "bytes":
        return tokens.train(TokenizerSettings(kind="bytes"), TEXTS)
    if kind in ("bpe", "unigram"):
        return tokens.train(TokenizerSettings(kind=kind, vocab_size=310), LONG)
    if kind == "sentencepiece":
        return Pieces(sentencepiece_model(add_dummy_prefix=False), Special(bos=1, eos=2))
    engine = bytes_tokenizer(gguf_tokenizer.CUTS[kind])
    about = json.loads(engine.to_str())
    about["model"]["ignore_merges"] = kind in gguf_tokenizer.WHOLE
    roles = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    return HuggingFace(json.dumps(about).encode(), Special(eos=0, pad=1), roles=roles)


def of_t5():
    """A tokenizer.json as T5's folders have it, of a unigram model of sentencepiece."""
    trained = io.BytesIO()
    pytest.importorskip("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(LONG * 20), model_writer=trained, vocab_size=90,
        hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    proto = modelproto.read_proto(trained.getvalue())
    about = pipelines.sentencepiece(proto)
    cuts = [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": SPACE,
            "prepend_scheme": "always", "split": True}]  # fmt: skip
    about["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": cuts}
    about["normalizer"] = {"type": "Sequence", "normalizers": [pipelines.precompiled(proto)]}
    about["added_tokens"] = [
        {"id": i, **pipelines.added_token(name)}
        for i, name in enumerate(("<pad>", "</s>", "<unk>"))
    ]
    about["post_processor"] = pipelines.template([], ["</s>"], {"</s>": 1})
    roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return HuggingFace(json.dumps(about).encode(), Special(eos=1, pad=0), roles=roles)


def test_the_tokenizer_json_of_a_t5_folder_is_written_and_marks_the_end(tmp_path):
    tokenizer = of_t5()
    config, params = model("t5", vocab_size=100)
    start = GenerationConfig(decoder_start_token_id=0, eos_token_id=(1,))
    jaxgen.save(tmp_path / "m.gguf", config, params, tokenizer=tokenizer, layout="gguf",
                generation_config=start)  # fmt: skip
    read = assets.read_assets(tmp_path / "m.gguf")
    assert read.tokenizer is not None and read.tokenizer.around() == ([], [1])
    for text in (*TEXTS, "  two  spaces ", "ﬁne  Ⅷ\n\ttabs"):
        assert read.tokenizer.encode(text) == tokenizer.encode(text)
    assert read.generation_config.decoder_start_token_id == 0


KINDS = ["bpe", "unigram", "bytes", "sentencepiece", *"gpt-2 smollm llama-bpe qwen2 tekken".split()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_written_with_its_ids_names_and_marks(tmp_path, kind):
    tokenizer = made(kind)
    config = jaxgen.ModelConfig(vocab_size=350, context=8, layers=1, d_model=8, heads=2, norm="rms",
                                positions="rope", feed="swiglu", biases="none")  # fmt: skip
    template = ChatTemplate("{{ messages }}", {}, others={"tool_use": "{{ tools }}"})
    settings = GenerationConfig(eos_token_id=(0, 2), temperature=0.5, top_k=9)
    jaxgen.save(
        *(tmp_path / "m.gguf", config, random_params(config)),
        tokenizer=tokenizer, generation_config=settings, chat_template=template, layout="gguf",
    )  # fmt: skip
    read = assets.read_assets(tmp_path / "m.gguf")
    assert read.tokenizer is not None and read.tokenizer.vocab_size == 350
    for text in TEXTS:
        assert read.tokenizer.encode(text) == tokenizer.encode(text)
        assert read.tokenizer.decode(tokenizer.encode(text)) == tokenizer.decode(
            tokenizer.encode(text)
        )
    assert read.tokenizer.special.pad == tokenizer.special.pad
    assert read.tokenizer.special.bos == tokenizer.special.bos
    assert read.chat_template is not None and read.chat_template.source == "{{ messages }}"
    assert read.chat_template.others == {"tool_use": "{{ tools }}"}
    assert (read.generation_config.temperature, read.generation_config.top_k) == (0.5, 9)
    assert read.generation_config.eos_token_id == (0, 2)


@pytest.mark.parametrize(
    ("said", "again"),
    [
        ({}, {}),  # and nothing of what llama.cpp would take for it
        ({"do_sample": False}, {"do_sample": False, "temperature": 0.0}),
        ({"do_sample": True, "top_p": 0.9}, {"do_sample": True, "temperature": 1.0, "top_p": 0.9}),
        ({"temperature": 0.6, "top_k": 20}, {"do_sample": True, "temperature": 0.6, "top_k": 20}),
    ],
)
def test_how_is_sampled_goes_through_a_file_and_nothing_comes_to_it(tmp_path, said, again):
    config, params = model("llama")
    about = GenerationConfig(**said)
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf", generation_config=about)
    assert assets.read_assets(tmp_path / "m.gguf").generation_config == GenerationConfig(**again)


def test_what_a_file_has_no_word_for_is_refused_and_nothing_is_left(tmp_path):
    config, params = model("llama")
    with pytest.raises(ConfigError, match="the name of a GGUF file ends"):
        jaxgen.save(tmp_path / "m", config, params, layout="gguf")
    sinusoid = config.replace(positions="sinusoid", norm="layer")
    with pytest.raises(ConfigError, match="no architecture of GGUF files has such a model: "):
        jaxgen.save(tmp_path / "m.gguf", sinusoid, random_params(sinusoid), layout="gguf")
    exact, weights = model("gpt_oss", rope_scaling=None)  # as published, which llama.cpp rounds
    with pytest.raises(ConfigError, match=r"gpt-oss has no rope\.scaling\.bounds=exact"):
        jaxgen.save(tmp_path / "m.gguf", exact, weights, layout="gguf")
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    stretched, weights = model("llama", rope_scaling=dynamic)
    with pytest.raises(ConfigError, match="a GGUF file of the architecture llama has no rope"):
        jaxgen.save(tmp_path / "m.gguf", stretched, weights, layout="gguf")
    odd = json.loads(bytes_tokenizer((r"[a-c]+",)).to_str())
    tokenizer = HuggingFace(json.dumps(odd).encode())
    with pytest.raises(ConfigError, match=r"llama.cpp has no name for; .* --to hf"):
        jaxgen.save(tmp_path / "m.gguf", config, params, tokenizer=tokenizer, layout="gguf")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="dtype='q8_0' has no effect with layout=hf"):
        jaxgen.save(tmp_path / "m", config, params, layout="hf", dtype="q8_0")
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf")
    with pytest.raises(ConfigError, match="exists already"):
        jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf")


def test_the_verb_writes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    config, params = model("llama")
    jaxgen.save("mine", config, params)
    assert app.main(["convert", "mine", "out.gguf", "--dtype", "q8_0"]) == 0
    assert "out.gguf (gguf layout)" in capsys.readouterr().out
    assert differences(config, jaxgen.load("out.gguf")[0]) == []
    assert app.main(["convert", "mine", "out"]) == 2
    assert "--to is missing: hf, jaxgen, or gguf" in capsys.readouterr().err
    assert app.main(["convert", "mine", "out", "--to", "hf", "--dtype", "q4_0"]) == 2
    assert app.main(["convert", "mine", "no.gguf", "--to", "hf"]) == 2
    assert "--to hf writes a folder, but no.gguf is named as a file" in capsys.readouterr().err
    assert app.main(["convert", "out.gguf", "again", "--to", "jaxgen"]) == 0
    a, b = (tree.flatten(jaxgen.load(p)[1]) for p in ("again", "out.gguf"))
    assert all(np.array_equal(a[path], b[path]) for path in a)


def of_letters():
    """A tokenizer of 320 ids that are whole characters: the server tells of no others."""
    letters = [chr(i) for i in range(33, 127)]
    merges = [[a, b] for a in letters[:15] for b in letters[:15]]
    pieces = [*letters, *(a + b for a, b in merges)]
    about = pipelines.byte_level({piece: i for i, piece in enumerate(pieces)}, merges)
    about["added_tokens"] = [{"id": 319, **pipelines.added_token("<end>")}]
    return HuggingFace(json.dumps(about).encode(), Special(eos=319))


@pytest.mark.parametrize("name", [*LATER, "t5-untied", "t5-encoder"])
def test_tensors_have_the_names_of_the_gguf_package(tmp_path, name):
    constants = pytest.importorskip("gguf.constants")
    config, params = model(name)
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf", dtype="q8_0")
    contents = gguf.open_file(tmp_path / "m.gguf")
    kinds = {name: kind for kind, name in constants.MODEL_ARCH_NAMES.items()}
    there = constants.MODEL_TENSORS[kinds[contents.metadata["general.architecture"]]]
    known = {constants.TENSOR_NAMES[one].format(bid=0) for one in there}
    found = {
        re.sub(r"\.(weight|bias)$", "", re.sub(r"blk\.\d+", "blk.0", n)) for n in contents.tensors
    }
    known |= {"rope_factors_long", "rope_factors_short"} if name == "phi3-long" else set()
    assert found <= known and {n for n in found if "output_norm" in n}


# llama.cpp has no windows in Phi 3, other norms in its mixture, and encoders write no text.
CLOSED = ("phi3-window", "phimoe", "phimoe-long", "modernbert")
OPENED = [name for name in LATER if name not in CLOSED]


def served(path, name, **more):
    """Return (config, params, llama.cpp's server) of a model in a file of ours."""
    import xllamacpp

    context = FAMILIES[name.partition("-")[0]].sizes["context"]
    config, params = model(name, vocab_size=320, initializer_range=0.2, **{context: 512})
    jaxgen.save(path, config, params, layout="gguf", tokenizer=of_letters())
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 512, 1, False, -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    for key, value in more.items():
        setattr(settings, key, value)
    return config, params, xllamacpp.Server(settings)


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
@pytest.mark.parametrize(
    "name", ["llama", "llama-3.1", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", *OPENED]
)
def test_llama_cpp_makes_the_same_greedy_text(tmp_path, name):
    config, params, server = served(tmp_path / "m.gguf", name)
    begin = np.random.default_rng(0).integers(0, 319, 40).tolist()
    about = {"prompt": begin, "max_tokens": 60, "temperature": 0.0, "logprobs": 1, "stream": False}
    answer = server.handle_completions({**about, "ignore_eos": True, "repeat_penalty": 1.0})
    pieces = answer["choices"][0]["logprobs"]["content"]
    theirs = [piece["id"] for piece in pieces]
    logits = jaxgen.apply(params, config, np.asarray([begin + theirs])).logits[0]
    ours = np.asarray(jax.nn.log_softmax(logits))[len(begin) - 1 : -1]
    ours = np.where(np.arange(ours.shape[1]) == of_letters().special.eos, -np.inf, ours)
    picked = np.take_along_axis(ours, np.asarray(theirs)[:, None], 1)[:, 0]
    np.testing.assert_allclose(
        [piece["logprob"] for piece in pieces], picked, atol=2e-3
    )  # its gelu is a table of float16
    assert (picked >= ours.max(1) - 1e-3).all()
    assert len(theirs) == 60


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="it is not installed")
@pytest.mark.parametrize("name", ["bert", "modernbert", "t5-encoder", "umt5-encoder"])
def test_llama_cpp_embeds_a_text_alike(tmp_path, name):
    import xllamacpp

    mean = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    both = xllamacpp.llama_attention_type.LLAMA_ATTENTION_TYPE_NON_CAUSAL
    how = {"embedding": True, "pooling_type": mean, "attention_type": both}  # T5's, too
    config, params, server = served(tmp_path / "m.gguf", name, **how)
    ids = np.random.default_rng(0).integers(0, 319, 40).tolist()
    answer = server.handle_embeddings({"input": ids, "embd_normalize": -1})
    theirs = np.asarray(answer["data"][0]["embedding"]).reshape(-1)
    ours = np.asarray(jaxgen.apply(params, config, np.asarray([ids])).hidden[0]).mean(0)
    unit = ours / np.linalg.norm(ours)
    np.testing.assert_allclose(theirs / np.linalg.norm(theirs), unit, atol=1e-4)
