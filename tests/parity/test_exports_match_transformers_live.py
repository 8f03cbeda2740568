"""What an exported folder's tokenizer gives in transformers is what ours gives."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import tokenizer_folders as folders
from random_params import random_params

import jaxgen
from jaxgen.cli import app
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.pretrained import hub_parity
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.tokens import TokenizerSettings, load, train
from jaxgen.tokens.export import ends, tokenizer_json
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.pieces import Pieces

sys.path.insert(0, str(Path(__file__).parent.parent / "tokens"))
from token_makers import TEXT, hf_file

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")


def trained(kind, **more):
    return lambda home: train(TokenizerSettings(kind=kind, **more), TEXT)


def proto(kind, **about):
    return lambda home: Pieces(folders.proto(kind, **about))


def file(**roles):
    return lambda home: load(hf_file(home / "tokenizer.json"), **roles)


def folder(name):
    def make(home):
        folders.FOLDERS[name](home)
        return read_tokenizer(home)

    return make


SIZES = {"vocab_size": 310, "context": 64, "layers": 1, "d_model": 8, "heads": 2}
KINDS = {
    "bpe": trained("bpe", vocab_size=310),
    "unigram": trained("unigram", vocab_size=310),
    "bpe in small letters": trained("bpe", vocab_size=310, lowercase=True),
    "unigram in small letters": trained("unigram", vocab_size=310, lowercase=True),
    "bytes": trained("bytes"),
    "chars": trained("chars"),
    "sentencepiece bpe": proto("bpe", **folders.LLAMA),
    "sentencepiece unigram": proto("unigram", **folders.LLAMA),
    "a file": file(eos="<|endoftext|>"),
    "a file with bos": file(bos="<|endoftext|>", eos="<|endoftext|>"),
    **{
        name: folder(name)
        for name in (
            "llama 2",
            "gemma",
            "t5",
            "bert, uncased",
            "roberta",
            "qwen2",
            "gpt2, pad added",
        )
    },
}


def texts_for(tokenizer):
    chance, letters = random.Random(0), "a \n\t\u2581\u00e9\u65e5<s>0x41A" + TEXT[0] + TEXT[1]
    made = ["".join(chance.choices(letters, k=chance.randrange(60))) for _ in range(180)]
    texts = [*made, *hub_parity.TRICKY, *TEXT]
    known = getattr(tokenizer, "characters", None)
    return texts if known is None else ["".join(c for c in t if c in known) for t in texts]


@pytest.mark.parametrize("topology", ["decoder", "encoder", "encoder_decoder"])
@pytest.mark.parametrize("name", KINDS)
def test_an_export_gives_our_ids_and_texts(tmp_path, name, topology):
    (tmp_path / "source").mkdir()
    tokenizer = KINDS[name](tmp_path / "source")
    rows = tokenizer.vocab_size + (topology == "encoder") + 100 * (topology == "encoder_decoder")
    found = tokenizer_json(tokenizer, rows=rows, topology=topology)
    (tmp_path / "tokenizer.json").write_bytes(found.file)
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(found.roles | about))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = texts_for(tokenizer)
    assert len(texts) >= 200
    before, after = ends(tokenizer, topology)
    for text in texts if topology == "decoder" else texts[::7]:
        ids = tokenizer.encode(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == [*before, *ids, *after], text
        if theirs.unk_token_id not in ids:
            assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids), text
    special = vars(tokenizer.special)
    for role, token in special.items():
        named = getattr(theirs, f"{role}_token_id")
        assert token is None or named == token or f"{role}_token" in getattr(tokenizer, "roles", {})
    if topology == "encoder" and name != "t5":  # which has its sentinels
        assert theirs.mask_token is not None
    again = HuggingFace(found.file)
    assert again.encode(TEXT[0]) == tokenizer.encode(TEXT[0])
    if topology == "encoder_decoder" and name not in ("t5", "roberta", "gemma", "bert, uncased"):
        first = theirs.convert_tokens_to_ids("<extra_id_0>")
        assert first == tokenizer.vocab_size


def test_what_has_no_form_is_refused_by_name():
    for about in ({"treat_whitespace_as_suffix": True, "vocab_size": 70}, {}):
        kind = "unigram" if about else "char"
        with pytest.raises(ConfigError, match=r"no form as a tokenizer\.json"):
            tokenizer_json(Pieces(folders.proto(kind, **about)), rows=99, topology="decoder")


def test_the_gate_tells_a_folder_that_reads_otherwise(tmp_path):
    tokenizer = train(TokenizerSettings(kind="bpe", vocab_size=310), TEXT)
    found = tokenizer_json(tokenizer, rows=tokenizer.vocab_size, topology="decoder")
    path = tmp_path / "tokenizer.json"
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(found.roles | about))
    path.write_bytes(found.file)
    sizes = folders.CONFIGS["llama"] | {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    count = len(hub_parity.TRICKY)
    told = hub_parity.compare_texts(tmp_path, tokenizer, "decoder")
    assert told == f"ids and texts of {count} texts equal" and count == 20
    for change in ({"normalizer": {"type": "NFC"}}, {"decoder": {"type": "Fuse"}}):
        path.write_text(json.dumps(json.loads(found.file) | change))
        with pytest.raises(
            CheckpointError, match=r"transformers .TokenizersBackend. (reads|writes)"
        ):
            hub_parity.compare_texts(tmp_path, tokenizer, "decoder")


def test_a_folder_whose_texts_transformers_reads_otherwise_is_not_converted(tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    config = jaxgen.ModelConfig(**SIZES)
    tokenizer = train(TokenizerSettings(kind="bpe", vocab_size=310), TEXT)
    jaxgen.save(source, config, random_params(config), tokenizer=tokenizer, layout="hf")
    command = ["convert", str(source), str(out), "--to", "jaxgen"]
    assert app.main(command) == 0
    shutil.rmtree(out)
    about = json.loads((source / "tokenizer_config.json").read_bytes())
    about["tokenizer_class"] = "Qwen2Tokenizer"
    (source / "tokenizer_config.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert app.main(command) == 4 and not out.exists()
    assert "transformers (Qwen2Tokenizer) reads" in capsys.readouterr().err
