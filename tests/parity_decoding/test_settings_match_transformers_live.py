"""Whole requests against transformers' `generate` on the same weights, settings drawn at random.

All cases of a model are one mixed batch here, of sources of several lengths and ends; there each
case is a call of its own, padded.
"""

import os
import time

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tokens
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import batch_decoding, processors
from jaxgen.text.batch_decoding import RequestBatch
from jaxgen.text.batches import Request, batch_size
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TOKENIZER = tokens.train(tokens.TokenizerSettings(kind="chars"), iter([ALPHABET]))
V, EOS, START, PAD, LENGTH = TOKENIZER.vocab_size, 5, 4, 0, 8
SHAPE = {"vocab_size": V, "context": 48, "layers": 2, "d_model": 16, "heads": 4, "init_std": 0.4}
TWO = SHAPE | {"topology": "encoder_decoder", "encoder_layers": 2}
MODELS = {
    "gpt2": SHAPE,
    "t5": TWO
    | {"norm": "rms", "positions": "relative", "biases": "none", "query_scalar": 1.0}
    | {"feed": "geglu", "output": "untied"},
    "bart": TWO
    | {"norm_at": "post", "embed_norm": "norm", "position_offset": 2, "feed": "gelu"}
    | {"output_bias": "bias"},
    "marian": TWO
    | {"norm_at": "post", "positions": "sinusoid", "embed_scale": "root", "feed": "silu"}
    | {"output_bias": "bias"},
}
KNOBS = {
    "repetition_penalty": (1.5, 0.7),
    "no_repeat_ngram": (2, 3),
    "source_penalty": (2.0,),
    "no_repeat_source": (2,),
    "min_new_tokens": (4, 8),
    "bad_words": (("a", "ef"), ("B",)),
    "bias": (("c=2", "xy=-4"),),
    "stop_ids": (tuple(range(9, 54, 3)), (21,)),
    "force_last": ((17,),),
    "length": (1, 5, LENGTH),
}
BEAMS = {"length_penalty": (0.0, 0.6, 2.0), "early_stopping": (True, False, "never")}
SEQ2SEQ = {"min_length": (5,), "force_first": ((11,),)}
NAMES = {
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "source_penalty": "encoder_repetition_penalty",
    "no_repeat_source": "encoder_no_repeat_ngram_size",
    "min_new_tokens": "min_new_tokens",
    "min_length": "min_length",
    "force_first": "forced_bos_token_id",
    "force_last": "forced_eos_token_id",
    "length_penalty": "length_penalty",
    "beams": "num_beams",
    "n_best": "num_return_sequences",
    "suppress_ids": "suppress_tokens",
    "max_new_tokens": "max_new_tokens",
}
NONE = -1e8  # the score of a text that there is none of


def drawn_cases(family, *, beams, count=6):
    """Settings of every knob, a few at a time."""
    random = np.random.default_rng([len(family), beams])
    knobs = KNOBS | (SEQ2SEQ if family != "gpt2" else {}) | (BEAMS if beams > 1 else {})
    for number in range(count):
        names = [n for n in knobs if random.random() < (0.0 if number == 0 else 0.4)]
        given = {n: knobs[n][random.integers(len(knobs[n]))] for n in names}
        if number % 2:
            given["stop_ids"] = KNOBS["stop_ids"][0]
        length = given.pop("length", LENGTH)
        if given.get("min_new_tokens", 0) > length:
            del given["min_new_tokens"]
        searching = {"beams": beams, "n_best": 2} if beams > 1 else {"temperature": 0.0}
        yield Generation(max_new_tokens=length, suppress_ids=(PAD,), **searching, **given)


def theirs(model, settings, sources):
    """Return ([B, N] lists of new tokens, [B, N] scores or None)."""
    encoder = model.config.is_encoder_decoder
    how = {NAMES[n]: getattr(settings, n) for n in NAMES if getattr(settings, n) not in (None, ())}
    how["suppress_tokens"] = [PAD]
    how |= {
        name: how[name][0] for name in ("forced_bos_token_id", "forced_eos_token_id") if name in how
    }
    if settings.bad_words:
        words = [processors.words_of("bad_words", w, TOKENIZER) for w in settings.bad_words]
        how["bad_words_ids"] = [ids for row in words for ids in row]
    if settings.bias:
        pairs = [word.rpartition("=") for word in settings.bias]
        how["sequence_bias"] = {tuple(TOKENIZER.encode(a)): float(b) for a, _, b in pairs}
    if settings.early_stopping is not None:
        how["early_stopping"] = settings.early_stopping
    ends = [EOS, *settings.stop_ids]
    width = max(map(len, sources))
    ids = np.full((len(sources), width), PAD)
    mask = np.zeros_like(ids)
    for row, source in enumerate(sources):
        here = slice(len(source)) if encoder else slice(width - len(source), None)
        ids[row, here], mask[row, here] = source, 1
    out = model.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **({"decoder_start_token_id": START} if encoder else {}),
        **how,
    )
    new = out.sequences[:, 1 if encoder else width :].tolist()
    number = settings.n_best or 1
    cut = [_until(row, ends) for row in new]
    grouped = [cut[n : n + number] for n in range(0, len(cut), number)]
    scores = getattr(out, "sequences_scores", None)
    if scores is None:
        return grouped, None
    scores = scores.reshape(-1, number).tolist()
    found = [[n for n, score in enumerate(row) if score > NONE] for row in scores]
    return (
        [[row[n] for n in kept] for row, kept in zip(grouped, found, strict=True)],
        [[row[n] for n in kept] for row, kept in zip(scores, found, strict=True)],
    )


def _until(row, ends):
    place = next((n + 1 for n, token in enumerate(row) if token in ends), len(row))
    return row[:place]


NIGHTLY = pytest.mark.skipif(not os.environ.get("JAXGEN_NIGHTLY"), reason="half a minute")


@pytest.fixture(
    scope="module",
    params=["gpt2", "t5", *(pytest.param(name, marks=NIGHTLY) for name in ("bart", "marian"))],
)
def both(request, tmp_path_factory):
    config = jaxgen.ModelConfig(**MODELS[request.param])
    params = random_params(config)
    folder = tmp_path_factory.mktemp("hub") / request.param
    jaxgen.save(folder, config, params, layout="hf", family=request.param)
    encoder = config.topology == "encoder_decoder"
    kind = transformers.AutoModelForSeq2SeqLM if encoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig()
    return request.param, config, params, model


@pytest.mark.parametrize("beams", [1, 4])
def test_random_settings_in_one_batch_make_the_texts_of_transformers(both, beams):
    family, config, params, model = both
    random = np.random.default_rng(7)
    sources = [random.integers(1, V, size).tolist() for size in (3, 9, 6)]
    cases = list(drawn_cases(family, beams=beams))
    requests = [Request(source, case.max_new_tokens, case) for case in cases for source in sources]
    start = START if config.topology == "encoder_decoder" else None
    told = GenerationConfig(eos_token_id=(EOS,))
    loaded = LoadedModel(config, params, TOKENIZER, start, generation_config=told)
    size = batch_size(len(requests))
    group = RequestBatch(loaded, params, tuple(requests), size, None, time.monotonic)
    found, ends = iter(batch_decoding.complete(group)), set()
    for case in cases:
        texts, scores = theirs(model, case, sources)
        for row in range(len(sources)):
            answers = next(found)
            ends |= {answer.reason for answer in answers}
            if scores is not None:
                told = [answer.score for answer in answers]
                np.testing.assert_allclose(told, scores[row], rtol=1e-4, atol=1e-4)
            assert [answer.tokens for answer in answers] == texts[row], case
    assert len(ends) == 2  # some end with a stop id, some at their limit
