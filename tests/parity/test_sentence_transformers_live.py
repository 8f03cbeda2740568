"""Folders that sentence-transformers saves embed here as there."""

import json

import numpy as np
import pytest

from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model

st = pytest.importorskip("sentence_transformers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c query : passage d e f ##g".split()
TEXTS = ["a b c", "A d", "c c c e f d a b c a b c a b c", "ag", " a  b "]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random BERT with a tokenizer, as transformers saves them."""
    home = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(home)
    (home / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(vocab=str(home / "vocab.txt"), do_lower_case=False)
    tokenizer.save_pretrained(home)
    return home


def modules_of(case):
    """The modules after the first, as their package makes them."""
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(1)
    mode, prompt = case.get("pooling", "mean"), case.get("include_prompt", True)
    size = 16 * (1 if isinstance(mode, str) else len(mode))
    modules = [Pooling(16, mode, include_prompt=prompt)]
    for kind in case.get("after", ()):
        if kind == "Normalize":
            modules.append(Normalize())
        elif kind == "LayerNorm":
            norm = LayerNorm(size)
            torch.nn.init.normal_(norm.norm.weight)
            modules.append(norm)
        else:
            activation, residual = kind
            modules.append(Dense(size, 5, activation_function=activation, use_residual=residual))
            size = 5
    return modules


CASES = {
    **{mode: {"pooling": mode} for mode in MODES},
    "joined": {"pooling": ("mean", "cls", "lasttoken")},
    **{f"{mode} without its prompt": {"pooling": mode, "include_prompt": False, "prompt": "query"}
       for mode in MODES},
    "with its prompt": {"prompt": "query"},
    "another prompt": {"prompt": "passage"},
    "default prompt": {"default": "passage"},
    "no prompt": {"default": "passage", "prompt": "document"},
    "normalize": {"after": ["Normalize"]},
    "tanh": {"after": [(torch.nn.Tanh(), False), "Normalize"]},
    "gelu": {"after": [(torch.nn.GELU(), False), (torch.nn.Identity(), False)]},
    "silu with its input": {"after": [(torch.nn.SiLU(), True), (torch.nn.Sigmoid(), True)]},
    "layer norm": {"after": ["LayerNorm", (torch.nn.ReLU(), False)]},
    "cut": {"after": ["Normalize"], "truncate_dim": 7},
    "short": {"max_seq_length": 6},
    "lower": {"lower": True},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_vectors_are_those_of_sentence_transformers(base, tmp_path, case):
    from sentence_transformers.base.modules import Transformer

    first = Transformer(str(base), max_seq_length=case.get("max_seq_length"),
                        do_lower_case=case.get("lower", False))  # fmt: skip
    theirs = st.SentenceTransformer(
        modules=[first, *modules_of(case)], device="cpu",
        prompts={"query": "query : ", "passage": "passage : "},
        default_prompt_name=case.get("default"), truncate_dim=case.get("truncate_dim"),
    )  # fmt: skip
    theirs.save(str(tmp_path), create_model_card=False)
    name = case.get("prompt")
    wanted = theirs.encode(TEXTS, prompt_name=name, show_progress_bar=False)
    model = open_model(tmp_path)
    if "max_seq_length" in case:
        with pytest.warns(UserWarning, match="were cut to 6 tokens"):
            found = tasks.embed(model, TEXTS, prompt_name=name, overflow="cut")
    else:
        found = tasks.embed(model, TEXTS, prompt_name=name)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("old", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_folders_of_older_releases_are_read_alike(base, tmp_path, old):
    from sentence_transformers.base.modules import Transformer

    modules = [Transformer(str(base)), *modules_of({})]
    st.SentenceTransformer(modules=modules, device="cpu").save(
        str(tmp_path), create_model_card=False
    )
    (tmp_path / "sentence_bert_config.json").unlink()
    (tmp_path / old).write_text(json.dumps({"max_seq_length": 5, "do_lower_case": True}))
    keys = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}  # fmt: skip
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(keys))
    wanted = st.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    with pytest.warns(UserWarning, match="were cut to 5 tokens"):
        found = tasks.embed(open_model(tmp_path), TEXTS, overflow="cut")
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
