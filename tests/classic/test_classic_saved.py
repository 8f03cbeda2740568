"""Traditional generators written to a folder and read back, and folders that hold none."""

import json

import jax
import numpy as np
import pytest

from jaxgen import ModelConfig, tree
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.classic import hmm, maxent, ngram, template
from jaxgen.models.classic.maxent import MaxEnt
from jaxgen.models.classic.ngram import NGram
from jaxgen.models.classic.template import Template
from jaxgen.models.classic.vae import VAE
from jaxgen.pretrained import classic
from jaxgen.tokens import load as load_tokenizer
from jaxgen.tokens.plain import Bytes

TOKENS, OFFSETS = np.arange(60) % 5, np.asarray([0, 30, 60])
NGRAM = NGram(vocab_size=5, order=2)
TEMPLATE = Template(vocab_size=5, fixed=3, support=2, longest=4, order=2)
MAXENT = MaxEnt(vocab_size=5, order=1, words=3)
TOWERS = ModelConfig(vocab_size=5, layers=1, d_model=4, heads=2, topology="encoder_decoder")
AUTOENCODER = VAE(model=TOWERS, latent=2, slots=1, start=0, eos=1)
MADE = {
    "ngram": lambda: (NGRAM, ngram.train(NGRAM, TOKENS, OFFSETS)),
    "template": lambda: (
        TEMPLATE, template.train(TEMPLATE, TOKENS, OFFSETS, np.arange(5) == 4)),
    "maxent": lambda: (MAXENT, maxent.init(MAXENT, TOKENS)),
    "hmm": lambda: (None, hmm.init(2, 5, jax.random.key(0))),
    "vae": lambda: (AUTOENCODER, {"latent": {"mean": np.ones((4, 2), np.float32)}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", classic.KINDS)
def test_a_generator_comes_back_as_it_was(tmp_path, kind):
    config, params = MADE[kind]()
    classic.save_generator(tmp_path / "made", kind, config, params, tokenizer=Bytes())
    again, other, kept = classic.load_generator(tmp_path / "made")
    assert (again, other) == (kind, config)
    flat = tree.flatten(params)
    assert set(tree.flatten(kept)) == set(flat)
    for path, leaf in tree.flatten(kept).items():
        assert leaf.dtype == np.asarray(flat[path]).dtype
        np.testing.assert_array_equal(leaf, flat[path])
    assert load_tokenizer(tmp_path / "made" / "tokenizer").fingerprint == Bytes.fingerprint


DAMAGE = {
    "no json": ("{", "generator.json is damaged"),
    "kind": ({"kind": "ngrm"}, "'ngrm' of generator is unknown (did you mean 'ngram'"),
    "size": ({"config": {"vocab_size": 5, "order": 0}}, "order=0 must be"),
    "field": ({"config": {"vocab": 5}}, "is damaged"),
    "newer": ({"format": 9}, "has format 9"),
    "missing": (None, "no such saved generator"),
}


@pytest.mark.parametrize(("change", "part"), DAMAGE.values(), ids=DAMAGE)
def test_a_folder_that_holds_no_sound_generator_is_refused(tmp_path, change, part):
    config, params = MADE["ngram"]()
    classic.save_generator(tmp_path / "made", "ngram", config, params)
    path = tmp_path / "made" / classic.ABOUT
    if change is None:
        path.unlink()
    else:
        changed = {**json.loads(path.read_text()), **change} if change != "{" else None
        path.write_text("{" if changed is None else json.dumps(changed))
    with pytest.raises(CheckpointError) as caught:
        classic.load_generator(tmp_path / "made")
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_generator_is_not_written(tmp_path):
    config, params = MADE["ngram"]()
    with pytest.raises(ConfigError, match="kind='ngrams' is unknown"):
        classic.save_generator(tmp_path / "a", "ngrams", config, params)
    with pytest.raises(ConfigError, match="kind=maxent has no config NGram"):
        classic.save_generator(tmp_path / "a", "maxent", config, params)
    classic.save_generator(tmp_path / "a", "ngram", config, params)
    with pytest.raises(ConfigError, match="exists already"):
        classic.save_generator(tmp_path / "a", "ngram", config, params)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
