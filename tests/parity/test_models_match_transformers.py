"""Every family and variant computes what transformers computes, through the whole import."""

import json
import os
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest
from parity_run import inputs, run, states, write_folder
from safetensors.numpy import load_file

import jaxgen
from jaxgen.models.families import FAMILIES
from jaxgen.models.families.resolved import differences
from jaxgen.pretrained import generation_config
from jaxgen.pretrained.generation_config import GenerationConfig, read_generation_config
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.tokens.plain import Bytes
from jaxgen.tokens.protocol import Special

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return the maker of a case's folder, as transformers would have saved it."""
    home = tmp_path_factory.mktemp("hub")

    @cache
    def make(family, name):
        folder = home / f"{family}-{name}".replace(" ", "-")
        return write_folder(folder, cases.about(golden(family), name))

    return make


@pytest.fixture(scope="module")
def loaded(hub):
    return cache(lambda family, name: jaxgen.load(hub(family, name)))


@cache
def golden(family):
    return cases.read(family)


def close(ours, want):
    np.testing.assert_allclose(ours, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("family", "name"), cases.NAMES)
def test_logits_and_hidden_states_match(loaded, family, name):
    logits, hidden = run(*loaded(family, name))
    want, real = golden(family), np.asarray(inputs()[2]) == 1
    assert (
        np.abs(want[f"{name}/logits"]).max() > 0.5
    )  # not all small: the tolerance means something
    close(logits[real], want[f"{name}/logits"][real])
    close(hidden[:, real], want[f"{name}/hidden"][1:][:, real])


@pytest.mark.parametrize(
    "family", [family for family in cases.CASES if family not in cases.EXPERTS]
)
def test_greedy_text_is_equal_token_for_token(loaded, family):
    name = list(cases.CASES[family])[-1]
    config, params = loaded(family, name)
    start = cases.TOKENS[:1, :8]
    ours = jaxgen.generate(params, config, start, jax.random.key(0), length=cases.NEW)
    assert ours[0].tolist() == golden(family)[f"{name}/greedy"].tolist()


@pytest.mark.parametrize(("family", "name"), cases.NAMES)
def test_a_round_trip_is_bit_exact(hub, loaded, family, name, tmp_path):
    folder = hub(family, name)
    config, params = loaded(family, name)
    jaxgen.save(tmp_path / "out", config, params, layout="hf", family=family)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)
    again, same = jaxgen.load(tmp_path / "out")
    assert differences(config, again) == []
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.parametrize(("kind", "name"), cases.RIGHT_NAMES)
def test_heads_and_encoder_decoders_match(loaded, kind, name):
    home, name = cases.home(kind), f"{kind[1]} {name}"
    config, params = loaded(home, name)
    want, mask = golden(home), jnp.asarray(cases.MASK)
    pad = cases.about(want, name)["config"]["pad_token_id"]
    tokens, memory, segments = cases.source(pad), None, mask
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, tokens, segments=mask)
        tokens, segments = cases.TARGETS, None
    out = jaxgen.apply(params, config, tokens, segments=segments, memory=memory, taps=("*/out",))
    real = np.ones(tokens.shape, bool) if memory is not None else cases.MASK == 1
    logits, theirs = out.hidden if out.logits is None else out.logits, want[f"{name}/logits"]
    close(*((logits, theirs) if config.head == "classes" else (logits[real], theirs[real])))
    hidden = states(config, out)
    close(hidden[:, real], want[f"{name}/hidden"][1:][:, real])
    assert (out.pooled is None) == (f"{name}/pooled" not in want)
    if out.pooled is not None:
        close(out.pooled, want[f"{name}/pooled"])


class Numbers(Bytes):
    """A tokenizer whose texts are the ids themselves."""

    vocab_size, special = cases.V, Special()

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


def written(hub, loaded, home, name, asked=None):
    """Return what `rewrite` makes of the padded rows, as lists of ids."""
    folder = hub(home, name)
    if asked is not None:
        (folder / "generation_config.json").write_text(json.dumps(asked))
    config, params = loaded(home, name)
    told, dropped = read_generation_config(folder)
    assert not dropped
    if asked is None:
        # As the golden run: nothing ends a text, and nothing is asked of the search.
        told = GenerationConfig(decoder_start_token_id=told.decoder_start_token_id)
    start = told.decoder_start_token_id
    model = LoadedModel(config, params, Numbers(), start=start, generation_config=told)
    rows = [cases.TOKENS[0], cases.TOKENS[1][: int(cases.MASK[1].sum())]]
    texts = [" ".join(map(str, row)) for row in rows]
    how = Generation() if asked else Generation(max_new_tokens=cases.NEW, beams=1)
    found = [one.tokens for (one,) in tasks.rewrites(model, texts, how, batch=2)]
    return [[x for x in row if x not in told.eos_token_id] for row in found]


WRITERS = [
    *(("right", f"{name}") for name in ("T5ForConditionalGeneration v1.0", "MarianMTModel lm")),
    ("right", "BartForConditionalGeneration lm"),
    ("seq2seq", "M2M100ForConditionalGeneration lm"),
]
if os.environ.get("JAXGEN_NIGHTLY"):
    WRITERS += [("seq2seq", f"{kind[1]} lm") for kind, named in cases.SEQ2SEQ.items()
                if "lm" in named and kind[0] != "m2m_100"]  # fmt: skip


@pytest.mark.parametrize(("home", "name"), WRITERS)
def test_greedy_text_of_two_towers_is_equal_token_for_token(hub, loaded, home, name):
    assert written(hub, loaded, home, name) == golden(home)[f"{name}/greedy"].tolist()


def test_a_search_follows_generation_config_token_for_token(hub, loaded):
    name = f"{cases.ASKING[1]} {cases.ASKING[2]}"
    stops = set(cases.ASKED["eos_token_id"])
    wanted = [
        row[: next((i for i, token in enumerate(row) if token in stops), len(row))]
        for row in golden("right")[f"{name}/asked"].tolist()
    ]
    assert written(hub, loaded, "right", name, cases.ASKED) == wanted
    for key in set(cases.ASKED) - {"decoder_start_token_id", "pad_token_id", "do_sample",
                                   "eos_token_id"}:  # fmt: skip
        assert key in generation_config.KEYS, key


def test_the_first_transformer_is_that_of_torch(loaded):
    config, params = loaded("right", "vanilla")
    want, mask = golden("right"), jnp.asarray(cases.MASK)

    @jax.jit
    def run(params):
        memory = jaxgen.encode(params, config, cases.source(0), segments=mask)
        return jaxgen.apply(params, config, cases.TARGETS, memory=memory)

    out = run(params)
    close(out.hidden, want["vanilla/hidden"])
    close(out.logits, want["vanilla/logits"])


ROUND = [(cases.home(kind), f"{kind[1]} {name}") for kind, name in cases.RIGHT_NAMES]


@pytest.mark.parametrize(("home", "name"), [*ROUND, ("right", "vanilla")])
def test_heads_and_encoder_decoders_go_round_bit_exactly(hub, loaded, home, name, tmp_path):
    folder = hub(home, name)
    theirs = json.loads((folder / "config.json").read_text())
    config, params = loaded(home, name)
    told, _ = read_generation_config(folder)
    jaxgen.save(
        *(tmp_path / "out", config, params),
        generation_config=told,
        layout="hf",
        family=theirs["model_type"],
    )
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    # transformers saves a model without a head under shorter names, and reads both.
    prefix = FAMILIES[theirs["model_type"]].prefix
    before = {n if n in after else f"{prefix}{n}": array for n, array in before.items()}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)
    assert read_generation_config(tmp_path / "out")[0] == told
