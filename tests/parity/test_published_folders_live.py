"""Published shapes of config.json: transformers computes the same with their keys, and so do we.

A random configuration of any family is either computed as transformers does, or refused by name.
"""

import json
import os
import re
import warnings

import numpy as np
import parity_cases as cases
import published
import published_sizes
import pytest
import random_configs
from safetensors.numpy import load_file, save_file

import jaxgen
from jaxgen import tree
from jaxgen.errors import CheckpointError
from jaxgen.models.families import FAMILIES
from jaxgen.models.families.resolved import differences
from jaxgen.pretrained import hub_read
from jaxgen.text import loaded_model, tasks

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
    # Ids of the published vocabulary, which this one lacks.
    config = json.loads((folder / "config.json").read_bytes())
    ids = {k: v for k, v in config.items() if k.endswith("_token_id") and type(v) is int}
    rewrite(folder, {k: v % config["vocab_size"] for k, v in ids.items()})
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


# Of two towers of kinds of their own, in files of which these keys stand always.
WHOLE = ("model_type", "is_decoder", "add_cross_attention", "cross_attention_hidden_size")
TOWERS = {"vit-gpt2": ("vit", "gpt2"), "vit-trocr": ("vit", "trocr"), "llava-llama": ()}


def fresh_config(model_type):
    """The config of a family as transformers has it by default."""
    kinds = transformers.CONFIG_MAPPING
    if model_type not in TOWERS:
        return kinds[model_type]()
    if model_type == "llava-llama":
        parts = {"text_config": "llama", "vision_config": "clip_vision_model"}
        return kinds["llava"](**{part: kinds[name]() for part, name in parts.items()})
    encoder, decoder = (kinds[name]() for name in TOWERS[model_type])
    if "cross_attention_hidden_size" in vars(decoder):
        decoder.cross_attention_hidden_size = encoder.hidden_size
    kind = transformers.VisionEncoderDecoderConfig
    return kind.from_encoder_decoder_configs(encoder, decoder)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "vanilla"])
def test_each_key_that_transformers_knows_is_read_or_known_to_be_neutral(model_type):
    family, config = FAMILIES[model_type], fresh_config(model_type)
    known = vars(transformers.PretrainedConfig()).keys()
    theirs = {k: 7.5 for k in vars(config) if k not in known and k[0] != "_"} | dict(
        config.attribute_map
    )
    # Settings of two towers stand in a part for each.
    parts = {k: v for k, v in vars(config).items() if isinstance(v, transformers.PretrainedConfig)}
    given = {
        k: dict.fromkeys(vars(v).keys() - known - {"layer_types"}, 7.5) for k, v in parts.items()
    }
    assert family.ignored_settings(dict.fromkeys(theirs, 7.5) | given) == []


# Without these transformers' defaults are of no model, or of one that is refused.
NEEDED = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deberta-v2": {"relative_attention": True, "position_biased_input": False}
    | {"pos_att_type": ["c2p"]},
    "glm4_moe": {"num_attention_heads": 64},
    "llava-llama": {"image_token_index": 31999},
}


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "vanilla"])
def test_what_a_config_leaves_out_is_what_transformers_takes_for_it(model_type):
    family, config = FAMILIES[model_type], fresh_config(model_type)
    told = {key for key in family.sizes.values() if key not in family.defaults}
    told |= {"max_position_embeddings", "intermediate_size"}
    fresh = json.loads(config.to_json_string(use_diff=False))
    sizes = {key: fresh[key] for key in told if fresh.get(key) is not None}
    if family.flat is not dict:
        parts = [k for k, v in vars(config).items() if isinstance(v, transformers.PretrainedConfig)]
        own = told | {k for k in fresh[parts[-1]] if k.startswith(("hidden_size", "num_"))}
        own |= set(WHOLE) if model_type in TOWERS else set()
        sizes |= {
            part: {k: v for k, v in fresh[part].items() if k in own and v is not None}
            for part in parts
        }
    sizes |= NEEDED.get(model_type, {}) | {"model_type": config.model_type}
    full = json.loads(type(config).from_dict(dict(sizes)).to_json_string(use_diff=False))
    ours, theirs = family.read(sizes), family.read(full)
    assert differences(ours, theirs) == differences(theirs, ours) == []


@pytest.mark.parametrize("name", published_sizes.CONFIGS)
def test_published_configs_are_read_as_transformers_reads_them_at_their_full_size(name):
    told = published_sizes.CONFIGS[name]
    family, kind = FAMILIES[told["model_type"]], transformers.CONFIG_MAPPING[told["model_type"]]
    full = json.loads(kind.from_dict(dict(told)).to_json_string(use_diff=False))
    # T5's kin are tied as the tensors are, whatever transformers makes of the key.
    full |= {key: told[key] for key in ("architectures", "tie_word_embeddings") if key in told}
    ours, theirs = family.read(told), family.read(full)
    assert differences(ours, theirs) == differences(theirs, ours) == []
    size = sum(leaf.size for leaf in tree.flatten(jaxgen.abstract(ours)).values())
    assert round(size / 1e6) == published_sizes.MILLIONS[name]


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


# Published under a name that transformers' class does not have; saved there under other names of
# tensors than any other head, and refused by us.
OTHERWISE = {"PhiMoEForCausalLM", "Qwen3MoeForQuestionAnswering"}


@pytest.mark.parametrize("model_type", cases.CASES)
def test_every_head_of_a_decoder_is_computed_as_transformers_does(model_type, tmp_path):
    family = FAMILIES[model_type]
    sizes = next(iter(cases.CASES[model_type].values())) | {
        "num_labels": 3,
        "vocab_size": published.V,
    }
    for name in {family.architecture, *family.heads} - OTHERWISE:
        theirs = computed(saved(tmp_path / name, name, sizes))
        np.testing.assert_allclose(ours(tmp_path / name, IDS), theirs, atol=1e-4, rtol=0)


# How many, of which few stand for all in a run of every test.
RUNS = int(os.environ.get("JAXGEN_RANDOM_CONFIGS", 500 if os.environ.get("JAXGEN_NIGHTLY") else 13))


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


@pytest.mark.parametrize("name", ["t5-v1_1", "Llama 2"])
def test_two_tables_are_both_read_whatever_is_said_of_them(name, tmp_path):
    architecture, sizes, _ = published.SHAPES[name]
    saved(tmp_path, architecture, sizes | {"tie_word_embeddings": False})
    rewrite(tmp_path, {"tie_word_embeddings": True})
    # Of T5 transformers 5 saves one table, unless a folder that it had read had two.
    weights = load_file(tmp_path / "model.safetensors")
    shape = weights.get("shared.weight", weights.get("model.embed_tokens.weight")).shape
    weights["lm_head.weight"] = np.random.RandomState(1).randn(*shape).astype(np.float32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = computed(opened(tmp_path, architecture))
    np.testing.assert_allclose(ours(tmp_path, IDS), theirs, atol=1e-4, rtol=0)
    assert jaxgen.load(tmp_path)[0].output == "untied"


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]


def with_words(folder, types=False):
    """Write a tokenizer of words, which begins texts and ends them, and parts two of them.

    types: whether its config says that it numbers the two.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    engine = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    engine.add_special_tokens(WORDS[:5])
    engine.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    if types:
        about["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


NER = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}}
ENTITIES = {
    "BERT": ("BertForTokenClassification", published.BERT | NER),
    "RoBERTa": ("RobertaForTokenClassification", published.ROBERTA | NER),
    "an encoder of T5": ("T5ForTokenClassification", published.T5 | NER),
    "a decoder": ("Qwen3ForTokenClassification", published.GEMMA | NER),
}
TRICKY = "Ada  Lovelace, née Byron: unaffable affable; don't-a b\u00e9 \U0001f642 c"


def with_pieces(folder, form):
    """Write a tokenizer of WordPiece, as BERT's, or of bytes, as RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    if form == "words":
        words = [*WORDS, ",", ":", "ada", "love", "##lace", "un", "##aff", "##able", "##able;"]
        words += ["byron", "##on", "by", "##r", "don", "-", "'"]
        ids = {w: i for i, w in enumerate(words)}
        engine = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        engine.normalizer = normalizers.BertNormalizer()
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        used = {c for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=True)
                .pre_tokenize_str(TRICKY) for c in word}  # fmt: skip
        ids = {w: i for i, w in enumerate([*WORDS[:5], *[c for c in letters if c in used], "lo"])}
        engine = Tokenizer(models.BPE(ids, [("l", "o")], unk_token="[UNK]"))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        engine.decoder = decoders.ByteLevel()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    engine.add_special_tokens(WORDS[:5])
    engine.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    about["unk_token"] = "[UNK]"
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


@pytest.mark.parametrize("form", ["words", "bytes"])
@pytest.mark.parametrize("name", ENTITIES)
def test_entities_are_those_of_transformers(name, form, tmp_path):
    architecture, sizes = ENTITIES[name]
    sizes |= {"max_position_embeddings": 90, "vocab_size": 60, "pad_token_id": 0}
    model = saved(tmp_path, architecture, sizes)
    with_pieces(tmp_path, form)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    opened = loaded_model.open_model(tmp_path)
    texts = [TRICKY, "Ada", "unaffable Ada a Lovelace"]
    for how in ("none", "simple", "first", "average", "max"):
        pipeline = transformers.pipeline(
            "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=how
        )
        for text, found in zip(
            texts, tasks.classify_tokens(opened, texts, aggregation=how), strict=True
        ):
            theirs = pipeline(text)
            named = [(row.get("entity_group", row.get("entity")), row["start"], row["end"])
                     for row in theirs]  # fmt: skip
            assert [(one.label, one.begin, one.end) for one in found] == named
            np.testing.assert_allclose(
                [one.score for one in found], [row["score"] for row in theirs], atol=1e-5, rtol=0
            )


ENDS = {"eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 3}
NAMES = {"id2label": {0: "no", 1: "maybe", 2: "yes"}}
CLASSES = {
    "single label": ("BertForSequenceClassification", published.BERT | NAMES),
    "many labels": (
        "BertForSequenceClassification",
        published.BERT | NAMES | {"problem_type": "multi_label_classification"},
    ),
    "one label": ("RobertaForSequenceClassification", published.ROBERTA | {"num_labels": 1}),
    "regression": (
        "BertForSequenceClassification",
        published.BERT | {"num_labels": 1, "problem_type": "regression"},
    ),
    "BART": ("BartForSequenceClassification", published.BART | NAMES | ENDS),
    "T5": ("T5ForSequenceClassification", published.T5 | NAMES | ENDS),
    "a decoder": ("Qwen2ForSequenceClassification", published.LLAMA | NAMES),
}
NARROW = published.BERT | {"embedding_size": 8} | NAMES
DEBERTA = published.BERT | NAMES | {"relative_attention": True, "position_biased_input": False}
DEBERTA |= {"pos_att_type": "p2c|c2p", "type_vocab_size": 2}
# Of pairs: (class, sizes, whether the tokenizer's config says that it numbers the two texts).
PAIRS = {
    "BERT": (*CLASSES["single label"], True),
    "BERT, not numbered": (*CLASSES["single label"], False),
    "ALBERT": ("AlbertForSequenceClassification", NARROW, False),
    "ELECTRA": ("ElectraForSequenceClassification", NARROW, True),
    "DeBERTa": ("DebertaV2ForSequenceClassification", DEBERTA, True),
}


@pytest.mark.parametrize("name", PAIRS)
def test_tokens_of_pairs_have_the_types_of_transformers_in_its_folder_and_in_ours(name, tmp_path):
    architecture, sizes, types = PAIRS[name]
    saved(tmp_path / "theirs", architecture, sizes)
    with_words(tmp_path / "theirs", types)
    first = loaded_model.open_model(tmp_path / "theirs")
    jaxgen.save(tmp_path / "ours", first.config, first.params, tokenizer=first.tokenizer,
                generation_config=first.generation_config, layout="hf")  # fmt: skip
    for home in (tmp_path / "theirs", tmp_path / "ours"):
        theirs = transformers.pipeline("text-classification", str(home), top_k=None)
        wanted = {row["label"]: row["score"] for row in
                  theirs([{"text": "d d", "text_pair": "a c b a"}])[0]}  # fmt: skip
        ((*found,),) = tasks.classify(loaded_model.open_model(home), [("d d", "a c b a")])
        assert dict(found) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_mean_what_they_mean_in_transformers(name, tmp_path):
    architecture, sizes = CLASSES[name]
    model = saved(tmp_path, architecture, sizes)
    with_words(tmp_path, types=architecture.startswith("Bert"))
    pipeline = transformers.pipeline(
        "text-classification",
        model=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path),
        top_k=None,
    )
    texts = ["a b c", ("d d", "a c b a")] if "Roberta" not in architecture else ["a b c"]
    opened = loaded_model.open_model(tmp_path)
    for text, found in zip(texts, tasks.classify(opened, texts, batch=2), strict=True):
        asked = text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
        theirs = pipeline(asked)
        theirs = theirs[0] if isinstance(theirs[0], list) else theirs
        wanted = sorted((row["score"] for row in theirs), reverse=True)
        np.testing.assert_allclose([score for _, score in found], wanted, atol=1e-5, rtol=0)
        if "id2label" in sizes:
            best = max(theirs, key=lambda row: row["score"])["label"]
            assert found[0][0] == best
