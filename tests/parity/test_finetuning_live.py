"""A classifier begun with a folder of masked tokens is the one that transformers makes of it."""

import json
import os
import warnings

import numpy as np
import published
import pytest
from random_params import random_params
from test_published_folders_live import saved

import jaxgen
from jaxgen import tree
from jaxgen.pretrained import hub_parity
from jaxgen.run import initial
from jaxgen.run.settings import build_settings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NARROW = published.BERT | {"embedding_size": 8}
DISTILBERT = {"vocab_size": published.V, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
DEBERTA = published.BERT | {"relative_attention": True, "position_biased_input": False}
MASKED = {
    "Bert": published.BERT,
    "Roberta": published.ROBERTA,
    "XLMRoberta": published.ROBERTA,
    "DistilBert": DISTILBERT,
    "Electra": NARROW,
    "DebertaV2": DEBERTA | {"pos_att_type": "p2c|c2p", "pooler_hidden_act": "gelu"},
    "ModernBert": published.MODERN | {"classifier_pooling": "mean"},
    "MPNet": published.ROBERTA,
    "Albert": NARROW,
}


def begun(folder):
    """Return the classifier that a run with init_from begins with."""
    told = {"init_from": str(folder), "model": {"head": "classes", "classes": 2}}
    config = build_settings(told | {"objective": {"name": "classes"}}).model
    params = tree.flatten(random_params(config))
    kept = initial.load(folder, config, tree.flatten(jaxgen.abstract(config))).params
    return config, tree.unflatten(params | kept)


@pytest.mark.parametrize("name", MASKED)
def test_a_classifier_begun_with_masked_tokens_is_that_of_transformers(name, tmp_path):
    saved(tmp_path / "masked", f"{name}ForMaskedLM", MASKED[name])
    config, params = begun(tmp_path / "masked")
    jaxgen.save(tmp_path / "ours", config, params, layout="hf", family=_type(tmp_path / "masked"))
    told = json.loads((tmp_path / "ours" / "config.json").read_bytes())
    assert told["architectures"] == [f"{name}ForSequenceClassification"]
    assert hub_parity.compare(tmp_path / "ours", config, params).startswith("largest difference ")
    # What their class takes from that folder, ours has taken; what it draws, ours has drawn.
    kind = getattr(transformers, f"{name}ForSequenceClassification")
    theirs, about = kind.from_pretrained(tmp_path / "masked", output_loading_info=True)
    ours = kind.from_pretrained(tmp_path / "ours").state_dict()
    for path, tensor in theirs.state_dict().items():
        same = np.allclose(ours[path].numpy(), tensor.numpy(), atol=1e-6)
        assert same == (path not in about["missing_keys"]), path


def test_a_pooler_that_the_folder_has_is_taken(tmp_path):
    saved(tmp_path / "bert", "BertForPreTraining", published.BERT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, params = begun(tmp_path / "bert")
    pooler = transformers.BertForPreTraining.from_pretrained(tmp_path / "bert").bert.pooler.dense
    found = np.asarray(params["head"]["dense"]).T
    np.testing.assert_allclose(found, pooler.weight.detach().numpy(), atol=1e-6)


def _type(folder):
    return json.loads((folder / "config.json").read_bytes())["model_type"]
