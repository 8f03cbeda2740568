"""Arguments are checked where they enter, by name, and nothing of it is in a program."""

import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import arguments, arrays
from jaxgen.arguments import at_least, between
from jaxgen.decoding.per_request import Number
from jaxgen.errors import ConfigError
from jaxgen.models import api

SIZES = {"vocab_size": 13, "context": 16, "layers": 1, "d_model": 8, "heads": 2}
CONFIG = jaxgen.ModelConfig(**SIZES)
BOTH = jaxgen.ModelConfig(**SIZES, topology="encoder")
KEY = jax.random.key(0)
IDS = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
# Made by tracing or by command-line parsers, whose own checks come first.
OURS = ("jaxgen.nn", "jaxgen.ops", "jaxgen.cli", "jaxgen.harness", "jaxgen.__main__")


@pytest.fixture(scope="module")
def params():
    return jaxgen.init(CONFIG, KEY)


def literals(hint):
    if typing.get_origin(hint) is typing.Literal:
        return True
    return any(literals(arm) for arm in typing.get_args(hint))


def choices():
    """Yield (callable, argument) of every choice of the face and of each dataclass there is."""
    callables = [getattr(jaxgen, name) for name in jaxgen.__all__]
    for found in pkgutil.walk_packages(jaxgen.__path__, "jaxgen."):
        if not found.name.startswith(OURS):
            module = importlib.import_module(found.name)
            classes = [c for c in vars(module).values() if inspect.isclass(c)]
            callables += [c for c in classes if c.__module__ == found.name]
    for one in dict.fromkeys(callables):
        if inspect.isclass(one) and not dataclasses.is_dataclass(one):
            continue
        hints = typing.get_type_hints(one)
        for name in inspect.signature(one).parameters:
            if literals(hints.get(name)):
                yield one, name


@pytest.mark.parametrize(("one", "name"), [*choices()], ids=lambda x: getattr(x, "__name__", x))
def test_a_choice_that_there_is_not_is_refused_by_name(one, name):
    with pytest.raises(ConfigError, match=rf"\b{name}='wrod'") as caught:
        one(**{name: "wrod"})
    assert "\n" not in str(caught.value)


def test_choices_are_found_in_functions_and_in_dataclasses():
    found = {(one.__name__, name) for one, name in choices()}
    assert {("generate", "store"), ("ModelConfig", "norm"), ("TrainSettings", "schedule")} <= found
    assert len(found) > 60


READERS = {
    "apply": lambda params, ids: jaxgen.apply(params, CONFIG, ids).logits,
    "encode": lambda params, ids: jaxgen.encode(jaxgen.init(BOTH, KEY), BOTH, ids).state,
    "generate": lambda params, ids: jaxgen.generate(params, CONFIG, ids, KEY, length=2),
    "beams": lambda params, ids: (
        jaxgen.generate_beams(params, CONFIG, ids, jaxgen.beams(2), length=2).tokens
    ),
    "decode": lambda params, ids: jaxgen.decode(
        lambda tokens, cache: (jax.nn.one_hot(tokens, 13), cache),
        *((), ids[:, -1], KEY, jaxgen.chain(), 2),
        prompt=ids,
    )[0],
}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int64"])
@pytest.mark.parametrize("reader", READERS)
def test_ids_of_every_integer_type_are_the_same_program_s(reader, dtype, params):
    read = READERS[reader]
    typed = jax.eval_shape(lambda: read(params, IDS.astype(dtype)))
    traced = jax.eval_shape(partial(read, params), jnp.asarray(IDS.astype(dtype)))
    assert typed == traced == jax.eval_shape(lambda: read(params, IDS))


def test_nested_lists_are_arrays(params):
    listed = jaxgen.apply(params, CONFIG, IDS.tolist(), segments=[[1, 1, 1], [1, 1, 2]])
    typed = jaxgen.apply(params, CONFIG, IDS, segments=np.array([[1, 1, 1], [1, 1, 2]]))
    assert (listed.logits == typed.logits).all()


def test_nothing_of_a_check_is_in_the_program(params):
    for function in (
        lambda call: partial(call, config=CONFIG),
        lambda call: lambda params, tokens: call(params, CONFIG, tokens, positions=tokens),
    ):
        checked, plain = function(jaxgen.apply), function(jaxgen.apply.__wrapped__)
        programs = [jax.make_jaxpr(f)(params, tokens=jnp.asarray(IDS)) for f in (checked, plain)]
        assert str(programs[0]) == str(programs[1])
    sample = partial(jaxgen.generate, config=CONFIG, length=2)
    plain = partial(jaxgen.generate.__wrapped__, config=CONFIG, length=2)
    programs = [
        jax.make_jaxpr(f)(params, prompt=jnp.asarray(IDS), key=KEY) for f in (sample, plain)
    ]
    assert str(programs[0]) == str(programs[1])


WRONG = {
    "an id past the vocabulary": ({"prompt": IDS + 10}, r"prompt\[0, 2\]=13 .* vocab_size=13"),
    "a negative id": ({"prompt": IDS - 2}, r"prompt\[0, 0\]=-1 must be at least 0"),
    "on the device": ({"prompt": jnp.asarray(IDS) + 10}, r"prompt\[0, 2\]=13"),
    "floats": ({"prompt": IDS * 1.0}, r"prompt=float64\[2, 3\] holds floats; it wants integers"),
    "one text": ({"prompt": IDS[0]}, r"has one axis; .* give \[1, T\], prompt\[None\]"),
    "one list": ({"prompt": [1, 2]}, r"has one axis; .* give \[1, T\], \[prompt\]"),
    "ragged": ({"prompt": [[1, 2], [3]]}, r"rows of different lengths; pad them"),
    "a text": ({"prompt": "once"}, r"prompt='once' is a string; it wants integers \[B, T\]"),
    "an empty row": ({"lengths": [0, 3]}, r"lengths\[0\]=0 must be at least 1"),
    "longer than the row": ({"lengths": [3, 4]}, r"lengths\[1\]=4 .* at most the width 3"),
    "rows": ({"lengths": [3]}, r"lengths=int64\[1\] has B=1, but prompt has B=2"),
    "a seed": ({"key": 0}, r"key=0 is an integer; it wants a key, as jax\.random\.key\(0\)"),
    "raw numbers": ({"key": np.zeros(3, np.uint32)}, r"key=uint32\[3\]"),
    "one key of two": ({"key": jax.random.split(KEY, 1)}, r"key<fry>\[1\] has B=1, but prompt"),
    "a processor": ({"sample": jaxgen.top_p(0.5)}, r"sample=top_p.* a Chain, as chain\(\.\.\.\)"),
    "settings of other rows": (
        {"sample": jaxgen.chain(jaxgen.temperature([0.1, 0.2, 0.3]))},
        r"sample\.processors\[0\]\.value=float32\[3\] has B=3, but prompt has B=2",
    ),
    "a store": ({"store": "bf16"}, r"store='bf16' is not one of plain, int8"),
    "a layout": ({"layout": "rings"}, r"layout='rings' .*did you mean 'ring'"),
    "no length": ({"length": 0}, r"length=0 must be at least 1"),
    "another config": ({"config": CONFIG.replace(d_ff=9)}, r"params are of another config: layers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_generate_names_what_is_wrong(case, params):
    change, said = WRONG[case]
    given = {"params": params, "config": CONFIG, "prompt": IDS, "key": KEY, "length": 2}
    with pytest.raises(ConfigError, match=f"^generate: .*{said}") as caught:
        jaxgen.generate(**{**given, **change})
    assert "\n" not in str(caught.value)


class OldProcessor:
    needs = "tokens"

    def __call__(self, logits, history):
        return logits


SLIPS = {
    "a function that makes one": (
        lambda params: jaxgen.chain(jaxgen.temperature),
        r"chain: processors\[0\]=temperature is no processor, but makes one; call it",
    ),
    "a processor of an older release": (
        lambda params: jaxgen.chain(OldProcessor()),
        r"processors\[0\]: OldProcessor\.needs='tokens' is now OldProcessor\.requires; rename it",
    ),
    "a chain of chains": (lambda params: jaxgen.chain(jaxgen.greedy()), r"\[0\] is a chain"),
    "settings of two batches": (
        lambda params: jaxgen.chain(jaxgen.top_p([0.5] * 2), jaxgen.temperature([1.0] * 3)),
        r"processors\[1\]\.value=float32\[3\] has B=3, but processors\[0\]\.mass has B=2",
    ),
    "a processor as a sampler": (
        lambda params: jaxgen.decode(
            lambda tokens, cache: (tokens, cache), (), [1], KEY, jaxgen.temperature(0.5), 2
        ),
        r"decode: sample=temperature\(\.\.\.\) is a processor; make it a chain: chain\(sample\)",
    ),
    "one text for a list": (
        lambda params: jaxgen.stop_strings("stop", [b"s"]),
        r"texts='stop' is a string; it wants list of str or list of list of str",
    ),
    "a position past the table": (
        lambda params: jaxgen.apply(params, CONFIG, IDS, positions=IDS + 11),
        r"positions\[1, 1\]=16 must be at least 0 and at most 15",
    ),
    "a device's number": (
        lambda params: jaxgen.temperature(jnp.float32(-1)),
        r"temperature: value=-1\.0 must be at least 0; 0 is greedy",
    ),
    "a field": (
        lambda params: jaxgen.preset("gpt2-124m", layrs=2),
        r"layrs= is no field of ModelConfig \(did you mean 'layers'\?\)",
    ),
    "a choice": (
        lambda params: jaxgen.preset("gpt2-124m", norm="rsm"),
        r"norm='rsm' is not one of layer, rms, rms_offset, rms_unit \(did you mean 'rms'\?\)",
    ),
}


@pytest.mark.parametrize("case", SLIPS)
def test_a_slip_is_answered_with_its_remedy(case, params):
    call, said = SLIPS[case]
    with pytest.raises(ConfigError, match=said) as caught:
        call(params)
    assert "\n" not in str(caught.value)


def test_padding_may_hold_any_number():
    call = arguments.Call({"lengths": [1, 3], "config": CONFIG})
    rule = arguments.token_ids(real="lengths")
    rule("prompt", np.array([[3, 99, -1], [1, 2, 3]]), call)
    with pytest.raises(ConfigError, match=r"prompt\[1, 2\]=99"):
        rule("prompt", np.array([[3, 99, -1], [1, 2, 99]]), call)


@arguments.checked(share=between(0, 1), count=at_least(1))
def cut(share: Number, *, count: int = 1):
    return share


def test_traced_and_large_arrays_are_trusted(monkeypatch):
    assert jax.jit(cut)(jnp.array(2.0)) == 2.0
    with pytest.raises(ConfigError, match=r"cut: share=2\.0 must be at least 0 and at most 1"):
        cut(jnp.array(2.0))
    monkeypatch.setattr(arrays, "LOOKED_AT", 2)
    assert cut(jnp.full(3, 2.0)).shape == (3,)
    with pytest.raises(ConfigError, match=r"share\[2\]=2\.0"):
        cut(np.array([0.0, 1.0, 2.0]))


def test_a_traced_number_of_the_program_is_named_with_its_remedy():
    with pytest.raises(ConfigError, match=r"count=int32\[\] is a traced value; .*static_argnames"):
        jax.jit(lambda n: cut(0.5, count=n))(3)


def test_numbers_of_numpy_are_numbers():
    config = jaxgen.ModelConfig(**{**SIZES, "layers": np.int64(1)}, pattern=["global"], dropout=0)
    assert config == CONFIG and type(config.dropout) is float and type(config.layers) is int


def test_what_python_refuses_is_left_to_python(params):
    with pytest.raises(TypeError, match="lenght"):
        jaxgen.generate(params, CONFIG, IDS, KEY, length=3, lenght=3)
    with pytest.raises(TypeError, match="multiple values"):
        jaxgen.init(CONFIG, KEY, config=CONFIG)


def test_parameters_with_a_leaf_of_one_s_own_are_taken(params):
    odd = {**params, "layers": object()}
    call = arguments.Call({"config": CONFIG})
    api.fits("params", odd, call)
    with pytest.raises(ConfigError, match=r"params are of another config: .* is absent"):
        api.fits("params", {"layers": object()}, call)


def test_a_leaf_that_is_no_array_cannot_be_saved(params, tmp_path):
    odd = {**params, "extra": "text"}
    with pytest.raises(ConfigError, match="params: extra is a str, which is no array"):
        jaxgen.save(tmp_path / "never", CONFIG, odd)
    assert not (tmp_path / "never").exists()
    with pytest.raises(ConfigError, match="family='gpt2' has no effect with layout=jaxgen"):
        jaxgen.save(tmp_path / "never", CONFIG, params, family="gpt2")


def test_checking_imports_nothing_heavy():
    program = (
        "import sys, jaxgen.config, jaxgen.train.settings as s; s.TrainSettings(steps=200);"
        "print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_dtype_where_its_name_is_wanted_is_told_to_be_written_as_a_string():
    with pytest.raises(ConfigError, match="write the string 'bfloat16'"):
        jaxgen.ModelConfig(param_dtype=jnp.bfloat16)
