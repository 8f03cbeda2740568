"""Texts are laid as the folder's own tokenizer lays them; a run lays them as its documents."""

import dataclasses
import itertools
import json

import pytest
from random_params import random_params

import jaxgen
from jaxgen.pretrained import generation_config
from jaxgen.pretrained.generation_config import (
    GenerationConfig,
    read_generation_config,
    write_generation_config,
)
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.tokens.huggingface import HuggingFace

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
BASE = {"vocab_size": 8, "context": 16, "layers": 1, "d_model": 8, "heads": 2}
ENCODER = {"topology": "encoder", "norm_at": "post", "embed_norm": "norm", "token_types": 2,
           "feed": "gelu", "output_bias": "bias", "norm_epsilon": 1e-12}  # fmt: skip


def words(template):
    import tokenizers
    from tokenizers import AddedToken, models, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(WORDS)}
    engine = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.add_special_tokens([AddedToken("[MASK]", special=True, lstrip=True)])
    if template:
        engine.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return HuggingFace(engine.to_str().encode())


def folder(home, template, ids, family, **fields):
    config = jaxgen.ModelConfig(**BASE, **fields)
    params = random_params(config)
    jaxgen.save(home / "hub", config, params, tokenizer=words(template), layout="hf", family=family)
    path = home / "hub/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ids))
    return open_model(home / "hub")


def test_an_encoder_reads_what_its_tokenizer_puts_around_a_text(tmp_path):
    model = folder(tmp_path, "[CLS] $A [SEP]", {}, "bert", head="mlm", **ENCODER)
    assert model.ids("a b") == [2, 5, 6, 3]
    special = model.tokenizer.special
    assert (special.bos, special.eos) == (2, 3)
    (found,) = tasks.fill_mask(model, ["a <mask> c"], batch=1)
    assert len(found) == 1 and len(found[0]) == 5


def test_an_encoder_whose_tokenizer_puts_nothing_around_a_text_reads_the_same_in_every_layout(
    tmp_path,
):
    ids = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    first = folder(tmp_path, None, ids, "bert", head="mlm", **ENCODER)
    assert first.ids("a b") == [5, 6]
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = HuggingFace(first.tokenizer.model, first.tokenizer.special, roles=roles)
    more = {"tokenizer": tokenizer, "generation_config": first.generation_config}
    for layout in ("jaxgen", "hf"):
        jaxgen.save(tmp_path / layout, first.config, first.params, **more, layout=layout)
        assert open_model(tmp_path / layout).ids("a b") == [5, 6]
    written = json.loads((tmp_path / "hf/config.json").read_text())
    assert {name: written[name] for name in ids} == ids


def test_a_mask_is_filled_with_pieces_that_stand_for_no_text_by_their_names(tmp_path):
    model = folder(tmp_path, "[CLS] $A [SEP]", {}, "bert", head="mlm", **ENCODER)
    (((*pieces,),),) = tasks.fill_mask(model, ["a <mask> c"], best=8)
    assert {name for name, _ in pieces} == {*WORDS}


def test_a_decoder_that_ends_documents_does_not_end_what_it_reads(tmp_path):
    model = folder(tmp_path, None, {"eos_token_id": [3, 1]}, "gpt2")
    assert model.ids("a b") == [5, 6] and model.stop == (3, 1)
    own = LoadedModel(model.config, model.params, model.tokenizer)
    assert own.ids("a b") == [5, 6, 3]


TOLD = {
    "eos_token_id": [3, 1], "decoder_start_token_id": 2, "pad_token_id": 0, "bos_token_id": None,
    "forced_bos_token_id": 5, "forced_eos_token_id": [3], "suppress_tokens": [6],
    "begin_suppress_tokens": [7], "bad_words_ids": [[5, 6]], "do_sample": True,
    "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "typical_p": 0.9,
    "repetition_penalty": 1.1, "encoder_repetition_penalty": 1.2, "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 4, "max_new_tokens": 9, "max_length": 12, "min_length": 2,
    "min_new_tokens": 1, "num_beams": 4, "length_penalty": 0.7, "early_stopping": "never",
    "renormalize_logits": True,
    "stop_strings": "end", "top_h": 0.4, "epsilon_cutoff": 0.1, "eta_cutoff": 0.2, "max_time": 3.0,
    "exponential_decay_length_penalty": [4, 1.5], "num_beam_groups": 2, "diversity_penalty": 0.5,
    "penalty_alpha": 0.6, "dola_layers": "high", "guidance_scale": 1.5,
    "prompt_lookup_num_tokens": 3,
}  # fmt: skip


def hub(home, told, about=None):
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps(about or {"model_type": "gpt2"}))
    (home / "generation_config.json").write_text(json.dumps(told))
    return home


def test_every_key_is_read_kept_in_our_folder_and_written_again(tmp_path):
    assert set(TOLD) == set(generation_config.KEYS)
    names = {"id2label": {"1": "bad", "0": "good"}}
    usage, lost = read_generation_config(hub(tmp_path / "hub", TOLD, names))
    assert lost == () and usage.labels == ("good", "bad")
    (tmp_path / "ours").mkdir()
    write_generation_config(tmp_path / "ours", usage)
    assert read_generation_config(tmp_path / "ours")[0] == usage
    about, generation = generation_config.to_hub(usage)
    wanted = {key: value for key, value in TOLD.items() if value is not None}
    assert generation == wanted | {"forced_eos_token_id": 3}
    assert about["label2id"] == {"good": 0, "bad": 1}
    assert read_generation_config(hub(tmp_path / "again", generation, about))[0] == usage


def test_what_is_off_is_open_and_what_is_not_followed_is_told(tmp_path):
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0,
           "no_repeat_ngram_size": 0, "penalty_alpha": 0, "guidance_scale": 1,
           "num_return_sequences": 1, "use_cache": True, "output_scores": True}  # fmt: skip
    assert read_generation_config(hub(tmp_path, off)) == (GenerationConfig(temperature=1.0), ())
    told = {"sequence_bias": [[[5], 2.0]], "dola_layers": [1, 2], "colour": "red"}
    config, dropped = read_generation_config(hub(tmp_path, told))
    assert config == GenerationConfig()
    assert set(dropped) == {"sequence_bias=[[[5], 2.0]]", "dola_layers=[1, 2]", "colour=red"}


def test_every_key_of_transformers_is_followed_named_or_changes_no_text():
    transformers = pytest.importorskip("transformers")
    theirs = set(vars(transformers.GenerationConfig()))
    sets = (set(generation_config.KEYS), generation_config.UNSUPPORTED, generation_config.NO_EFFECT)
    assert not theirs - set().union(*sets)
    assert not any(a & b for a, b in itertools.combinations(sets, 2))


def test_sampling_settings_of_config_json_count_only_without_the_newer_file(tmp_path):
    about = {"model_type": "gpt2", "top_k": 7, "eos_token_id": 5}
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert read_generation_config(tmp_path)[0] == GenerationConfig(top_k=7, eos_token_id=(5,))
    assert read_generation_config(hub(tmp_path, {}, about))[0] == GenerationConfig(
        eos_token_id=(5,)
    )


WRONG = {
    "temperature": (-1, "it wants a number above 0"),
    "top_p": (1.5, "at most 1"),
    "top_k": (2.5, "it wants a whole number from 1 on"),
    "eos_token_id": ("x", "it wants a token id"),
    "bad_words_ids": ([5], "it wants lists of token ids"),
    "early_stopping": ("maybe", "it wants one of True, False, never"),
    "num_beams": (0, "from 1 on"),
    "repetition_penalty": (-1, "it wants a number above 0"),
}


@pytest.mark.parametrize(("key", "case"), WRONG.items(), ids=WRONG)
def test_a_value_that_can_not_be_is_not_followed_and_named(tmp_path, key, case):
    value, part = case
    plain, _ = read_generation_config(hub(tmp_path / "plain", {}))
    told, odd = read_generation_config(hub(tmp_path / "odd", {key: value}))
    assert getattr(told, key) == type(told).__dataclass_fields__[key].default
    assert told == dataclasses.replace(plain, **{key: getattr(told, key)})
    assert len(odd) == 1 and odd[0].startswith(f"{key}={value} (") and part in odd[0]


def test_of_values_that_contradict_each_other_the_limit_is_followed(tmp_path):
    told, odd = read_generation_config(hub(tmp_path, {"min_length": 9, "max_length": 5}))
    assert (told.min_length, told.max_length) == (None, 5)
    assert odd == ("min_length=9 (it exceeds max_length=5)",)
