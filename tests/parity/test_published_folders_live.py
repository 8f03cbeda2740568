"""Published shapes of config.json: transformers computes the same with their keys, and so do we.

A random configuration of any family is either computed as transformers does, or refused by name.
"""

import json
import os
import re
import warnings

import numpy as np
import published
import pytest
import random_configs

import jaxgen
from jaxgen.errors import CheckpointError
from jaxgen.models.families import FAMILIES
from jaxgen.pretrained import hub_read

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = np.random.RandomState(0).randint(5, published.V, (1, published.LENGTH))
IDS[:, -1] = 2  # the end of a text, which BART's classes are read from


def saved(folder, name, sizes):
    """Save a model of transformers' whose weights are large enough for everything to show."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**sizes)).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.requires_grad and "embed_positions" not in path:
                weight.mul_(0 if weight.ndim > 1 else 1).add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    return model


def rewrite(folder, keys):
    path = folder / "config.json"
    config = json.loads(path.read_bytes()) | keys
    if "rope_scaling" in keys or "rope_theta" in keys:
        config.pop("rope_parameters", None)
    path.write_text(json.dumps(config))
    return config


def opened(folder, name):
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def computed(model, ids=IDS):
    """Return what a model of transformers' makes of the ids, whatever its head."""
    ids = torch.from_numpy(ids)
    decodes = model.config.is_encoder_decoder and "Encoder" not in type(model).__name__
    shifts = type(model).__name__.endswith(("SequenceClassification", "QuestionAnswering"))
    more = {"decoder_input_ids": ids} if decodes and not shifts else {}
    with torch.no_grad():
        out = model(ids, **more)
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1).numpy()
    names = ("logits", "prediction_logits", "pooler_output", "last_hidden_state")
    return next(out[name] for name in names if out.get(name) is not None).numpy()


@pytest.mark.parametrize("name", published.SHAPES)
def test_keys_of_published_folders_change_no_logit(name, tmp_path):
    architecture, sizes, keys = published.SHAPES[name]
    plain = saved(tmp_path, architecture, sizes)
    before = hub_read.read_config(tmp_path)[1]
    full = rewrite(tmp_path, keys)
    family, config = hub_read.read_config(tmp_path)
    ignored = family.ignored_settings(full)
    # Keys that say something we follow may change the config; all others change nothing.
    if config == before:
        theirs = computed(opened(tmp_path, architecture))
        np.testing.assert_allclose(theirs, computed(plain), atol=1e-6, rtol=0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        jaxgen.load(tmp_path)
    told = [str(w.message) for w in seen if "config.json" in str(w.message)]
    assert len(told) == (1 if ignored else 0), told
    assert all(entry.partition("=")[0] in told[0] for entry in ignored)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "vanilla"])
def test_each_key_that_transformers_knows_is_read_or_known_to_be_neutral(model_type):
    family = FAMILIES[model_type]
    kind = transformers.CONFIG_MAPPING[model_type]
    known = vars(transformers.PretrainedConfig()).keys()
    theirs = {k: 7.5 for k in vars(kind()) if k not in known} | dict(kind.attribute_map)
    assert family.ignored_settings(dict.fromkeys(theirs, 7.5)) == []


@pytest.mark.parametrize("name", published.REFUSED)
def test_what_changes_a_result_is_refused_by_name(name, tmp_path):
    architecture, sizes, keys, told = published.REFUSED[name]
    saved(tmp_path, architecture, sizes)
    rewrite(tmp_path, keys)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        hub_read.read_config(tmp_path)


def ours(folder, ids):
    """Return what we make of the ids, as `computed` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, params = jaxgen.load(folder)
    tokens, memory = ids, None
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, ids)
        if config.head in ("classes", "spans"):
            start = json.loads((folder / "config.json").read_bytes())["decoder_start_token_id"]
            tokens = np.concatenate([np.full((len(ids), 1), start), ids[:, :-1]], axis=1)
    out = jaxgen.apply(params, config, tokens, memory=memory)
    if config.head == "pooled":
        return np.asarray(out.pooled)
    return np.asarray(out.hidden if out.logits is None else out.logits)


RUNS = 300 if os.environ.get("JAXGEN_NIGHTLY") else 13


@pytest.mark.parametrize("run", range(RUNS))
def test_a_random_configuration_is_computed_as_transformers_does_or_refused(run, tmp_path):
    rng = np.random.default_rng(run)
    names = list(random_configs.OPTIONAL)
    architecture, sizes, keys = random_configs.drawn(rng, names[run % len(names)])
    try:
        saved(tmp_path, architecture, sizes | keys)
        full = rewrite(tmp_path, keys)
        theirs = computed(opened(tmp_path, architecture))
    except Exception as error:  # what transformers cannot do is none of ours
        pytest.skip(f"transformers: {error!r:.80}")
    try:
        found = ours(tmp_path, IDS)
    except CheckpointError as error:
        odd = [key for key in full if key in str(error)] or "tensors don't fit" in str(error)
        assert odd, error
        pytest.skip(f"refused: {error!s:.80}")
    assert found.shape == theirs.shape
    np.testing.assert_allclose(found, theirs, atol=1e-4 * max(1, np.abs(theirs).max()), rtol=0)
