"""A walk through the public face with wrong values of every argument, as users would call it.

Run as a program it prints the counts as JSON: what was answered by one clear line, what by another
error, and what by a result although the value is wrong. It runs without the suite's type checks.
"""

import inspect
import json
import os
import re
import tempfile
import time
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen
from jaxgen import errors
from jaxgen.config import RopeScaling
from jaxgen.data.objectives.settings import ObjectiveSettings
from jaxgen.data.settings import DataSettings
from jaxgen.mesh.settings import MeshSettings
from jaxgen.models.classic.word2vec import Word2Vec
from jaxgen.ops.memory import Memory
from jaxgen.run.settings import SampleSettings
from jaxgen.store.settings import CheckpointSettings
from jaxgen.text.request import Generation
from jaxgen.tokens.settings import TokenizerSettings
from jaxgen.train.settings import TrainSettings

V = 11
SIZES = {"vocab_size": V, "context": 16, "layers": 1, "d_model": 8, "heads": 2}
CONFIG = jaxgen.ModelConfig(**SIZES, topology="encoder_decoder", token_types=2)
DECODER = jaxgen.ModelConfig(**SIZES)
PREFIX = DECODER.replace(prompt="both", token_types=2, positions="rope")
KEY = jax.random.key(0)
IDS = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
ROW = np.array([3, 2], np.int32)
PIECES = [bytes([97 + i]) for i in range(V)]
CHAIN = jaxgen.chain(jaxgen.temperature(0.5))
OPTIMIZER = optax.sgd(0.1)


def zeros(config):
    """Return parameters of a config, none of which were ever drawn."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jaxgen.abstract(config))


def step(tokens, cache):
    return jax.nn.one_hot((tokens + 1) % V, V), cache


def several(tokens, cache):
    return jax.nn.one_hot((tokens + 1) % V, V), cache


def seeing(tokens, cache):
    return jax.nn.one_hot(tokens, V), jax.nn.one_hot(tokens, 4), cache


def loss(params, config, batch, key=None):
    return jaxgen.causal_loss(params, config, batch, key)


PARAMS = zeros(DECODER)
MEMORY = Memory(jnp.zeros((2, 3, 8)), jnp.ones((2, 3), jnp.int32))
STRINGS = jaxgen.stop_strings(["ab"], PIECES)
WORDS = jaxgen.must_appear([[3]])
MARK = jaxgen.watermark(3)
DRAFT = jaxgen.lookup(2)
BATCH = {"tokens": IDS, "targets": IDS}
LOOP = {"step": step, "cache": (), "first": ROW, "key": KEY, "sample": CHAIN, "length": 2}
LOOP |= {"stop": np.array([0]), "strings": STRINGS, "limit": ROW, "prompt": IDS, "lengths": ROW}
TEXT = {"params": PARAMS, "config": DECODER, "prompt": IDS, "key": KEY, "length": 2}
TEXT |= {"sample": CHAIN, "lengths": ROW, "stop": np.array([0]), "strings": STRINGS}
MODEL = {
    "params": zeros(PREFIX),
    "config": PREFIX,
    "tokens": IDS,
    "positions": IDS,
    "types": IDS * 0,
}
MODEL |= {"segments": IDS, "prefix": IDS * 0, "taps": (), "key": KEY}
GUIDANCE = {"conditional": step, "unconditional": step, "scale": 1.5}
SEARCH = {"search": jaxgen.beams(2), "words": WORDS}
HIDDEN = {"prompt_hidden": jnp.zeros((2, 3, 4)), "prompt_hidden_lengths": ROW}


def without(given, *names):
    return {name: value for name, value in given.items() if name not in names}


# A right call of every public callable; what is left out has its default, and is walked as well.
CALLS = {
    "Delta": {"key_heads": 2, "value_heads": 4, "key_width": 8, "value_width": 8},
    "Disentangled": {"buckets": 8},
    "Embed": {},
    "Experts": {"number": 4},
    "HeadLayer": {},
    "Latent": {"kv_rank": 32, "rope_width": 8, "plain_width": 16, "value_width": 16},
    "LayerKind": {"rope": jaxgen.Rope()},
    "ModelConfig": SIZES,
    "PerLayer": {},
    "Stem": {},
    "Vision": {},
    "Relative": {},
    "Residual": {},
    "Rope": {},
    "RopeScaling": {"kind": "yarn", "original_context": 8},
    "Scores": {},
    "Towers": {},
    "abstract": {"config": DECODER},
    "allowed_tokens": {"function": lambda tokens, length: jnp.ones(V, bool)},
    "apply": MODEL,
    "axes": {"config": DECODER},
    "bad_words": {"words": [[5], [3, 7]], "keep": [1]},
    "beam_search": without(LOOP, "start") | SEARCH,
    "beams": {"count": 4, "groups": 2, "diversity": 0.5},
    "best_of": {"candidates": ["a", "bb"], "scorer": len},
    "causal_loss": {"params": PARAMS, "config": DECODER, "batch": BATCH, "key": KEY},
    "chain": {},
    "classifier_free_guidance": GUIDANCE,
    "choices": {"texts": ["ab"], "pieces": PIECES, "stop": 0},
    "contrastive_search": without(LOOP, "key", "step")
    | {"step": seeing, "count": 2, "penalty": 0.5, **HIDDEN},
    "decode": LOOP,
    "decode_detailed": LOOP | {"top": 2},
    "dexperts": {"model": step, "expert": step, "antiexpert": step, "weight": 1.0},
    "detect": {"mark": MARK, "tokens": IDS, "lengths": ROW},
    "draft_model": {"step": step, "cache": (), "sample": CHAIN, "count": 2},
    "empty_cache": {"config": DECODER, "batch": 2, "capacity": 4},
    "encode": {"params": zeros(CONFIG), "config": CONFIG}
    | without(MODEL, "params", "config", "prefix"),
    "epsilon": {"cutoff": 0.1},
    "eta": {"cutoff": 0.1},
    "force_first": {"token": [3]},
    "force_last": {"token": [3], "length": 4},
    "frequency_penalty": {"amount": 0.5},
    "fused": {"model": step, "prior": step, "weight": 0.5},
    "generate": TEXT,
    "generate_beams": TEXT | SEARCH,
    "generate_contrastive": without(TEXT, "key") | {"count": 2, "penalty": 0.5},
    "generate_detailed": TEXT | {"top": 2},
    "generate_dola": TEXT | {"layers": "low"},
    "generate_lookup": TEXT | {"count": 2},
    "generate_speculative": TEXT | {"draft_params": PARAMS, "draft_config": DECODER, "count": 2},
    "greedy": {},
    "guided": GUIDANCE,
    "init": {"config": DECODER, "key": KEY},
    "json_schema": {"description": {"type": "null"}, "pieces": PIECES, "stop": 0},
    "layer_contrast": {"step": step},
    "length_decay": {"start": 3, "factor": 1.5, "stop": [0]},
    "load": {"path": "absent"},
    "lookup": {"count": 2},
    "min_length": {"count": 2, "stop": [0]},
    "min_new_tokens": {"count": 2, "stop": [0]},
    "min_p": {"share": 0.1},
    "minimum_risk": {"candidates": ["a", "b"], "utility": lambda a, b: a == b, "weights": [1, 2]},
    "model_step": {"params": PARAMS, "config": DECODER},
    "multi_token_step": {"step": step},
    "must_appear": {"words": [[3, 7]]},
    "no_repeat_ngram": {"size": 2},
    "no_repeat_source": {"size": 2, "source": IDS, "lengths": ROW},
    "open": {"folder": "absent"},
    "prefill": {"params": PARAMS, "config": DECODER, "prompt": IDS, "lengths": ROW, "capacity": 9},
    "presence_penalty": {"amount": 0.5},
    "preset": {"name": "gpt2-124m"},
    "reader": {"step": step},
    "regex": {"pattern": "a+", "pieces": PIECES, "stop": 0},
    "renormalize": {},
    "repetition_penalty": {"penalty": 1.2},
    "save": {"path": "saved", "config": DECODER, "params": PARAMS},
    "self_debias": {"model": step, "biased": step, "decay": 50.0},
    "sequence_bias": {"biases": {(5,): -2.0}},
    "source_penalty": {"penalty": 1.2, "source": IDS, "lengths": ROW},
    "speculate": without(LOOP, "step", "start") | {"read": several, "draft": DRAFT},
    "stop_strings": {"texts": ["ab"], "pieces": PIECES},
    "suppress": {"tokens": [3]},
    "suppress_first": {"tokens": [3]},
    "temperature": {"value": 0.5},
    "top_h": {"share": 0.5},
    "top_k": {"count": 4},
    "top_n_sigma": {"count": 1.0},
    "top_p": {"mass": 0.9},
    "train_state": {"params": PARAMS, "optimizer": OPTIMIZER, "key": KEY},
    "train_step": {
        "state": jaxgen.train_state(PARAMS, OPTIMIZER, KEY), "batch": BATCH, "config": DECODER,
        "optimizer": OPTIMIZER, "loss": loss,
    },
    "typical": {"mass": 0.5},
    "watermark": {"key": 3},
}  # fmt: skip
# Settings that are no public names, but are made by hand as well as from a config.
SETTINGS = {
    RopeScaling: {}, TrainSettings: {}, MeshSettings: {}, CheckpointSettings: {}, DataSettings: {},
    ObjectiveSettings: {}, TokenizerSettings: {}, SampleSettings: {}, Generation: {},
    Word2Vec: {"vocab_size": 9, "width": 4, "window": 2, "form": "cbow", "output": "negative",
               "negatives": 2},
}  # fmt: skip
# What is right after all: by function and argument ("*" is each function), of what is tried.
REAL, SIGNED = {"a float"}, {"a float", "negative"}
TEXTS, IDS_OF_ANY_NUMBER = {"a word", "a list of words"}, {"a row more"}
ALL = None  # whatever a user's own function reads
ACCEPTED = {
    ("*", "cache"): ALL,
    ("allowed_tokens", "data"): ALL,
    ("*", "stop"): IDS_OF_ANY_NUMBER,
    ("save", "path"): TEXTS,
    ("*", "candidates"): TEXTS,
    ("stop_strings", "texts"): TEXTS,
    ("beams", "length_penalty"): SIGNED,
    ("beams", "diversity"): REAL,
    ("*", "amount"): SIGNED,
    ("classifier_free_guidance", "scale"): SIGNED,
    ("guided", "scale"): SIGNED,
    ("fused", "weight"): REAL,
    ("dexperts", "weight"): REAL,
    ("self_debias", "decay"): REAL,
    ("watermark", "bias"): SIGNED,
    ("*", "penalty"): REAL,
    ("length_decay", "factor"): REAL,
    ("temperature", "value"): REAL,
    ("top_n_sigma", "count"): REAL,
    ("train_step", "spike"): REAL,
    ("causal_loss", "z"): REAL,
    ("ModelConfig", "norm_epsilon logit_cap init_std residual_scale"): REAL,
    ("ModelConfig", "output_scale"): REAL,
    ("Embed", "scale"): REAL,
    ("Experts", "scale balance_rate balance z"): REAL,
    ("Residual", "clip"): REAL,
    ("Towers", "encoder_norm_epsilon"): REAL,
    ("LayerKind", "keys_of"): TEXTS,
    ("Rope", "theta share"): REAL,
    ("RopeScaling", "factor low high attention mscale short long"): REAL,
    ("Latent", "norm_epsilon"): REAL,
    ("Vision", "norm_epsilon"): REAL,
    ("Scores", "query_scalar multiplier cap"): REAL,
    ("TrainSettings", "learning_rate epsilon weight_decay clip z_loss spike epochs"): REAL,
    ("TrainSettings", "no_decay freeze zeros"): TEXTS,
    ("Generation", "policy"): TEXTS,  # a path, which is read later
    ("DataSettings", "files field user"): TEXTS,
    ("SampleSettings", "prompts"): TEXTS,
    ("SampleSettings", "temperature"): REAL,
    ("Generation", "max_seconds temperature top_n_sigma"): REAL,
    ("Generation", "repetition_penalty source_penalty"): REAL,
    ("Generation", "presence_penalty frequency_penalty guidance"): SIGNED,
    (
        "Generation",
        "stop bad_words bad_words_ids bias bias_ids choices regex json_schema draft",
    ): TEXTS,
}
RIGHT = {
    (title, name): values for (title, names), values in ACCEPTED.items() for name in names.split()
}


def accepted(title, name, wrong):
    """Return whether a value is right after all, as the table above says."""
    for key in ((title, name), ("*", name)):
        if key in RIGHT and (RIGHT[key] is ALL or wrong in RIGHT[key]):
            return True
    return False


def wrong_values(valid):
    """Yield (what is wrong, a value) for an argument whose right value is `valid`."""
    yield from (("none", None), ("a word", "wrod"), ("a list of words", ["wrod"]))
    yield from (("an object", object()), ("a set", {1}), ("a float", 2.5), ("negative", -7))
    yield "not a number", float("nan")
    yield "a wrong rank", np.zeros((1, 2, 1, 2, 1), np.int32)
    if not getattr(valid, "shape", ()):
        return
    yield "a row more", jnp.concatenate([valid, valid[:1]])
    if jnp.issubdtype(valid.dtype, jnp.integer):
        numbers = np.asarray(valid)
        for where, array in (("", np.asarray), (" on the device", jnp.asarray)):
            yield f"floats{where}", array(numbers * 1.0)
            with jax.ensure_compile_time_eval():  # as a user has it, outside of a trace
                yield f"out of range{where}", array(numbers - 100)


def spelled(value):
    """Return what a message must hold of a value."""
    return str(value) if isinstance(value, str | int | float | None) else ""


def judged(call, name, value):
    """Return (verdict, what was said) of a call with a wrong value of one argument."""
    try:
        call()
    except errors.UserError as error:
        said = str(error)
        named = re.search(rf"\b{name}\b", said) and spelled(value) in said and "\n" not in said
        return ("clear" if named else "unclear"), said
    except Exception as error:
        return "unclear", f"{type(error).__name__}: {error}"
    return "silent", ""


def walk(title, function, given):
    """Yield (verdict, title, argument, what is wrong, what was said) of wrong calls."""
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        optional = type(None) in typing.get_args(hints.get(name)) or parameter.default is None
        for wrong, value in wrong_values(given.get(name)):
            if value is None and optional:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                call = partial(function, *given.values(), value)
            else:
                call = partial(function, **{**given, name: value})
            verdict, said = judged(call, name, value)
            right = verdict == "silent" and accepted(title, name, wrong)
            yield ("accepted" if right else verdict), title, name, wrong, said


def everything():
    """Return the results of all walks."""
    results = []
    for name, given in CALLS.items():
        results += walk(name, getattr(jaxgen, name), given)
    for kind, given in SETTINGS.items():
        results += walk(kind.__name__, kind, given)
    return results


def main():
    begun, results = time.perf_counter(), []
    called = {n for n in jaxgen.__all__ if callable(getattr(jaxgen, n))}
    # Tuples with names are results, which functions that get them look at.
    called -= {n for n in called if hasattr(getattr(jaxgen, n), "_fields")}
    called -= {"train"}  # takes what the command line does, as tests/cli/test_cli_notebook.py shows
    missing = sorted(called - CALLS.keys())
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        # Nothing is compiled: what passes all checks is traced, and no more.
        jax.eval_shape(lambda: results.extend(everything()))
        os.chdir(home)
    counts = dict.fromkeys(("clear", "unclear", "silent", "accepted"), 0)
    for verdict, *_ in results:
        counts[verdict] += 1
    shown = [" | ".join(one) for one in results if one[0] in ("unclear", "silent")]
    seconds = round(time.perf_counter() - begun, 1)
    print(json.dumps(counts | {"missing": missing, "seconds": seconds, "shown": shown}))


if __name__ == "__main__":
    main()
