"""What encoder-decoders write is what transformers' generate makes of the same folder.

Their tokenizers, languages, and the verbs of the command line.
"""

import json
import os
import shutil

import pytest
import tokenizer_folders as folders

import jaxgen
from jaxgen.cli import app, start
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.pretrained.languages import read_languages
from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model
from jaxgen.text.request import Generation

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["hello there, how are you?", "the cats sat on a mat."]
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 2,
         "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
         "max_position_embeddings": 64, "encoder": TOWER, "decoder": TOWER}  # fmt: skip
# model_type: (class, folder of a tokenizer, more of its config.json).
T5 = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
BART = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
MODELS = {
    "mt5": ("MT5ForConditionalGeneration", folders.FOLDERS["mt5"], T5),
    "umt5": ("UMT5ForConditionalGeneration", folders.FOLDERS["t5"], T5),
    "pegasus": ("PegasusForConditionalGeneration", folders.FOLDERS["pegasus"], T5),
    "blenderbot": ("BlenderbotForConditionalGeneration", folders.FOLDERS["blenderbot"], BART),
    "mbart": ("MBartForConditionalGeneration", folders.OF_LANGUAGES["mbart"], BART),
    "mbart-50": ("MBartForConditionalGeneration", folders.OF_LANGUAGES["mbart-50"], BART),
    "m2m_100": ("M2M100ForConditionalGeneration", folders.OF_LANGUAGES["m2m-100"], BART),
    "nllb": ("M2M100ForConditionalGeneration", folders.OF_LANGUAGES["nllb"], BART),
    "t5gemma": (
        "T5GemmaForConditionalGeneration",
        folders.FOLDERS["gemma"],
        {"decoder_start_token_id": 2, "bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 1},
    ),
}  # fmt: skip
LANGUAGES = {
    "mbart": ("en_XX", "de_DE"), "mbart-50": ("en_XX", "de_DE"), "m2m_100": ("en", "de"),
    "nllb": ("eng_Latn", "deu_Latn"),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    """Return (name, folder, model of transformers, its tokenizer)."""
    architecture, write, ids = MODELS[request.param]
    home = tmp_path_factory.mktemp(request.param)
    write(home)
    kind = getattr(transformers, architecture)
    if request.param == "umt5":  # which transformers opens with a tokenizer.json alone
        transformers.T5Tokenizer.from_pretrained(home).save_pretrained(home)
    about = {"model_type": kind.config_class.model_type}
    (home / "config.json").write_text(json.dumps(about))
    tokenizer = transformers.AutoTokenizer.from_pretrained(home)
    torch.manual_seed(0)
    known = {key: value for key, value in SIZES.items() if key in vars(kind.config_class())}
    size = {"vocab_size": len(tokenizer)}
    known = {k: v | size if isinstance(v, dict) else v for k, v in known.items()}
    config = kind.config_class(**known, **size, **ids)
    model = kind(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "embed_positions" not in name:
                weight.mul_(weight.ndim == 1).add_(torch.randn_like(weight) * 0.4)
    model.save_pretrained(home)
    return request.param, home, model, tokenizer


def written(model, tokenizer, text, **keys):
    ids = tokenizer(text, return_tensors="pt")
    ids.pop("token_type_ids", None)
    with torch.no_grad():
        out = model.generate(**ids, do_sample=False, max_new_tokens=8, **keys)
    return out[0, 1:].tolist(), tokenizer.decode(out[0], skip_special_tokens=True)


def languages_of(name, tokenizer):
    """Set the language of sources; return what makes transformers' generate write the other."""
    tokenizer.src_lang, target = LANGUAGES[name]
    forced = tokenizer.convert_tokens_to_ids(f"__{target}__" if name == "m2m_100" else target)
    return {"decoder_start_token_id" if name == "mbart" else "forced_bos_token_id": forced}


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(folder, beams):
    name, home, model, tokenizer = folder
    keys, ours = {}, open_model(home)
    if name in LANGUAGES:
        keys = languages_of(name, tokenizer)
        ours = tasks.for_languages(ours, *LANGUAGES[name])
    wanted = [written(model, tokenizer, text, num_beams=beams, **keys) for text in TEXTS]
    asked = Generation(beams=beams, max_new_tokens=8)
    found = [best[0] for best in tasks.rewrites(ours, TEXTS, asked)]
    assert [(list(one.tokens), one.text) for one in found] == wanted


def test_tokenizers_as_transformers_saves_them_are_read_alike(folder, tmp_path):
    name, home, _, tokenizer = folder
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(home / "config.json", tmp_path)
    ours = read_tokenizer(tmp_path)
    languages = read_languages(tmp_path, ours)
    assert (languages is not None) == (name in LANGUAGES)
    before, after = ours.around() if languages is None else languages.around(
        languages.codes[languages.source])  # fmt: skip
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert [*before, *ours.encode(text), *after] == again(text)["input_ids"]


TEMPLATE = (
    "{% for message in messages %}{{ ' ' }}{{ message['content'] }}{% endfor %}{{ eos_token }}"
)


def test_a_chat_reads_what_the_template_makes_of_it(folder, tmp_path):
    name, home, model, tokenizer = folder
    if name in LANGUAGES:
        pytest.skip("translates")
    shutil.copytree(home, tmp_path / "chat")
    (tmp_path / "chat/chat_template.jinja").write_text(TEMPLATE)
    tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "hello there"}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    ids.pop("token_type_ids", None)
    with torch.no_grad():
        out = model.generate(**ids, do_sample=False, num_beams=1, max_new_tokens=8)
    session = jaxgen.open(tmp_path / "chat")
    answer = session.chat(messages, temperature=0.0, max_new_tokens=8)
    assert answer == tokenizer.decode(out[0], skip_special_tokens=True)


def test_verbs_print_the_texts_alone(folder, capsys, monkeypatch):
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    name, home, model, tokenizer = folder
    more = ["--max-new-tokens", "8", "--beams", "1"]
    keys, between = {}, []
    if name in LANGUAGES:
        between = ["--from", LANGUAGES[name][0], "--to", LANGUAGES[name][1]]
        keys = languages_of(name, tokenizer)
    _, wanted = written(model, tokenizer, TEXTS[0], num_beams=1, **keys)
    verbs = [["translate", str(home), TEXTS[0], *between]]
    verbs += [] if between else [["summarize", str(home), TEXTS[0]]]
    verbs += [] if between else [["generate", str(home), "--prompt", TEXTS[0]]]
    for verb in verbs:
        assert app.main([*verb, *more]) == 0
        assert capsys.readouterr().out.removesuffix("\n") == wanted
