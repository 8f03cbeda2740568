"""Folders with tokenizers, each with the files and keys that its kind is published with."""

import io
import json
from functools import cache

import sentencepiece
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from jaxgen.tokens.marian import LANGUAGES

WORDS = (
    "hello there user and system how are you the cats sat on a mat caf\u00e9 Stra\u00dfe 12".split()
)
LINES = [" ".join(WORDS[i:] + WORDS[:i]) + "." for i in range(len(WORDS))] * 4
TEXTS = [
    "hello there, how are you?",
    "  two  spaces and a tab\t.",
    "lines\n\nof text \n",
    "Caf\u00e9 Cafe\u0301 STRA\u00dfE \u6f22\u5b57 \U0001f469\u200d\U0001f680 \u0646\u0635 1234567",
    "marks <s> and </s> <|im_start|>user<|im_end|> in  it",
    "<mask> the [MASK] cats <extra_id_0> sat <extra_id_2>. <pad> ",
    " ",
    "",
    "supercalifragilistic" * 6,
]
MIX = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MARKS = ("<|im_end|>", "<|im_start|>")
ENCODER = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 2000,
}
SIZES = ENCODER | {"num_key_value_heads": 2}
CONFIGS = {
    "llama": SIZES,
    "mistral": SIZES | {"sliding_window": None},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 4},
    "gemma": SIZES | {"head_dim": 4},
    "bert": ENCODER,
    "roberta": ENCODER | {"pad_token_id": 1},
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 2000},
    "t5": {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "vocab_size": 2000,
        "decoder_start_token_id": 0,
    },
    "bart": {
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
        "max_position_embeddings": 64,
        "vocab_size": 2000,
    },
}
CONFIGS |= dict.fromkeys(("electra", "albert", "deberta-v2"), ENCODER)
CONFIGS |= {"mpnet": CONFIGS["roberta"], "xlm-roberta": CONFIGS["roberta"]}
CONFIGS |= {"distilbert": {"dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2} | ENCODER}
CONFIGS |= {"opt": SIZES | {"ffn_dim": 8, "word_embed_proj_dim": 8}}
CONFIGS["deberta-v2"] = ENCODER | {"relative_attention": True, "position_biased_input": False}
CONFIGS["deberta-v2"] |= {"pos_att_type": "p2c|c2p", "type_vocab_size": 2}
CONFIGS |= dict.fromkeys(("mbart", "m2m_100", "pegasus", "blenderbot"), CONFIGS["bart"])
CONFIGS["mt5"] = CONFIGS["t5"]


def proto(kind, **about):
    """Return a sentencepiece model of about 300 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=3,
        **{"vocab_size": 330} | about,
    )
    return model.getvalue()


LLAMA = {
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
    "normalization_rule_name": "identity",
}
GEMMA = LLAMA | {
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "user_defined_symbols": ["<mask>", "\n", "\n\n", "<start_of_turn>"],
}
T5 = {"vocab_size": 70, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
SPACED = {"vocab_size": 70}
# Whose special pieces are pieces of the model, ALBERT's by other names than DeBERTa's.
ALBERT = {"vocab_size": 80, "bos_id": -1, "eos_id": -1, "pad_id": 0, "unk_id": 1}
ALBERT |= {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "pad_piece": "<pad>"}
DEBERTA = {"vocab_size": 80, "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
DEBERTA |= {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]", "pad_piece": "[PAD]"}


@cache
def byte_level():
    """Return (vocab, merges) of BPE on bytes."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    engine.train_from_iterator(LINES, trainer)
    model = json.loads(engine.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def pair(home, first=(), last=()):
    """Write vocab.json and merges.txt, with pieces before and after those of the merges."""
    vocab, merges = byte_level()
    names = [*first, *vocab, *last]
    write(home / "vocab.json", {name: i for i, name in enumerate(names)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (home / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def words(home, *more):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,?", "\u00e9", "\u6f22", "\u00df"]
    pieces = [
        *special,
        *letters,
        *(f"##{c}" for c in letters),
        *map(str.lower, WORDS),
        "Hello",
        *more,
    ]
    (home / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def added(names, first, **flags):
    """Return rows of added_tokens_decoder."""
    base = {
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
    return {str(first + i): base | {"content": name} | flags for i, name in enumerate(names)}


def size_of(raw):
    return sentencepiece.SentencePieceProcessor(model_proto=raw).vocab_size()


def with_proto(model_type, file, raw, about=None, **more):
    def make(home):
        (home / file).write_bytes(raw)
        _about(home, model_type, about, more)

    return make


def with_pair(model_type, about=None, first=(), last=(), **more):
    def make(home):
        pair(home, first, last)
        _about(home, model_type, about, more)

    return make


def with_words(about=None, *pieces, model_type="bert", **more):
    def make(home):
        words(home, *pieces)
        _about(home, model_type, about, more)

    return make


def with_file(model_type, change, about=None, **more):
    """Make a folder of a tokenizer.json: BPE on bytes, that `change` gets to change."""

    def make(home):
        vocab, merges = byte_level()
        engine = Tokenizer(models.BPE(vocab, merges))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        change(engine)
        engine.save(str(home / "tokenizer.json"))
        _about(home, model_type, about, more)

    return make


def _about(home, model_type, about, more):
    if about is not None:
        write(home / "tokenizer_config.json", about)
    for name, value in more.items():
        write(home / f"{name}.json", value)
    write(home / "config.json", {"model_type": model_type} | CONFIGS[model_type])


def _marks(*names, **flags):
    flags = {"special": True, "normalized": False} | flags
    return lambda engine: engine.add_tokens([AddedToken(name, **flags) for name in names])


def _composed(engine):
    engine.normalizer = normalizers.NFC()
    engine.add_special_tokens(["<|endoftext|>", *MARKS])
    engine.add_tokens(
        [AddedToken("<think>", normalized=False), AddedToken(" two", normalized=True)]
    )


def _folders():
    bpe, uni, gemma, t5 = (
        proto("bpe", **LLAMA),
        proto("unigram", **SPACED),
        proto("bpe", **GEMMA),
        proto("unigram", **T5),
    )
    n, fast = size_of(bpe), {"tokenizer_class": "PreTrainedTokenizerFast"}
    llama = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True} | MIX
    chatml = {"added_tokens_decoder": added(["<unk>", "<s>", "</s>"], 0) | added(MARKS, n)}
    ends = ["<s>", "<pad>", "</s>", "<unk>"]
    return {
        "llama 2": with_proto("llama", "tokenizer.model", bpe, llama | {"legacy": False}),
        "llama 1, legacy": with_proto("llama", "tokenizer.model", bpe, llama | {"legacy": True}),
        "llama without bos": with_proto(
            "llama", "tokenizer.model", bpe, llama | {"add_bos_token": False}
        ),
        "llama with eos": with_proto(
            "llama", "tokenizer.model", bpe, llama | {"add_eos_token": True}
        ),
        "llama without prefix": with_proto(
            "llama", "tokenizer.model", bpe, llama | {"add_prefix_space": False}
        ),
        "llama, added_tokens.json": with_proto(
            "llama",
            "tokenizer.model",
            bpe,
            llama,
            added_tokens={"<|im_end|>": n, "<|im_start|>": n + 1},
            special_tokens_map=MIX | {"eos_token": "<|im_end|>"},
        ),
        "llama, added_tokens_decoder": with_proto("llama", "tokenizer.model", bpe, llama | chatml),
        "llama, flags of pieces": with_proto(
            "llama",
            "tokenizer.model",
            bpe,
            llama | {"added_tokens_decoder": added(MARKS, n, rstrip=True, special=False)},
        ),
        "llama, special_tokens_map": with_proto(
            "llama",
            "tokenizer.model",
            bpe,
            {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
            special_tokens_map={
                k: {
                    "content": v,
                    "lstrip": True,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                }
                for k, v in MIX.items()
            },
        ),
        "mistral": with_proto("mistral", "tokenizer.model", bpe, llama),
        "mistral, chatml": with_proto("mistral", "tokenizer.model", bpe, llama | chatml),
        "gemma": with_proto(
            "gemma",
            "tokenizer.model",
            gemma,
            {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True},
        ),
        "t5": with_proto(
            "t5", "spiece.model", t5, {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
        ),
        "t5, sentinels named": with_proto(
            "t5",
            "spiece.model",
            t5,
            {
                "tokenizer_class": "T5Tokenizer",
                "extra_ids": 3,
                "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"],
            },
        ),
        "t5 without config": with_proto("t5", "spiece.model", t5),
        "mt5": with_proto("mt5", "spiece.model", t5, {"extra_ids": 0, "eos_token": "</s>"}),
        "pegasus": with_proto(
            "pegasus",
            "spiece.model",
            proto("unigram", **T5),
            {"tokenizer_class": "PegasusTokenizer", "mask_token_sent": "<mask_1>", "offset": 103}
            | {"mask_token": "<mask_2>", "unk_token": "<unk>", "eos_token": "</s>"},
        ),
        "pegasus without config": with_proto("pegasus", "spiece.model", proto("unigram", **T5)),
        "blenderbot": with_pair(
            "blenderbot",
            {"tokenizer_class": "BlenderbotTokenizer", "add_prefix_space": True},
            first=ends,
            last=["<mask>"],
        ),
        "xlm-roberta": with_proto(
            "roberta", "sentencepiece.bpe.model", uni, {"tokenizer_class": "XLMRobertaTokenizer"}
        ),
        "xlm-roberta without config": with_proto("xlm-roberta", "sentencepiece.bpe.model", uni),
        "opt": with_pair(
            "opt",
            {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<pad>"}
            | dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>"),
            first=["<s>", "<pad>", "</s>", "<unk>"],
        ),
        "gpt2": with_pair("gpt2", last=["<|endoftext|>"]),
        "gpt2, pad added": with_pair(
            "gpt2",
            {"tokenizer_class": "GPT2Tokenizer", "pad_token": "[PAD]", "add_prefix_space": True},
            last=["<|endoftext|>"],
        ),
        "roberta": with_pair(
            "roberta", {"tokenizer_class": "RobertaTokenizer"}, first=ends, last=["<mask>"]
        ),
        "bart": with_pair(
            "bart",
            {
                "tokenizer_class": "BartTokenizer",
                "mask_token": {
                    "__type": "AddedToken",
                    "content": "<mask>",
                    "lstrip": True,
                    "normalized": True,
                    "rstrip": False,
                    "single_word": False,
                },
            },
            first=ends,
            last=["<mask>"],
        ),
        "qwen2": with_pair(
            "qwen2",
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "eos_token": "<|im_end|>",
                "added_tokens_decoder": added(["<|endoftext|>", *MARKS], 300),
            },
        ),
        "qwen3 without config": with_pair("qwen3", last=["<|endoftext|>"]),
        "bert, uncased": with_words({"tokenizer_class": "BertTokenizer", "do_lower_case": True}),
        "bert, cased": with_words({"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
        "bert without config": with_words(),
        "bert, accents kept": with_words(
            {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False}
        ),
        "bert, own names": with_words(
            {"tokenizer_class": "BertTokenizer", "cls_token": "<s>", "sep_token": "</s>"},
            "<s>",
            "</s>",
        ),
        "bert, two words twice": with_words({"tokenizer_class": "BertTokenizer"}, "mats"),
        "electra": with_words({"do_lower_case": True}, model_type="electra"),
        "distilbert": with_words(model_type="distilbert"),
        "electra, cased": with_words(
            {"tokenizer_class": "ElectraTokenizer", "do_lower_case": False}, model_type="electra"
        ),
        "mpnet": with_words(
            {"tokenizer_class": "MPNetTokenizer"}, *ends[:3], "<mask>", model_type="mpnet"
        ),
        "albert": with_proto("albert", "spiece.model", proto("unigram", **ALBERT)),
        "albert, letters as they are": with_proto(
            "albert",
            "spiece.model",
            proto("unigram", **ALBERT),
            {"tokenizer_class": "AlbertTokenizer", "do_lower_case": False, "keep_accents": True},
        ),
        "deberta": with_proto(
            "deberta-v2",
            "spm.model",
            proto("unigram", **DEBERTA),
            {"do_lower_case": False, "vocab_type": "spm"},
        ),
        "deberta, small letters, marks alone": with_proto(
            "deberta-v2",
            "spm.model",
            proto("unigram", **DEBERTA),
            {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": True}
            | {"split_by_punct": True},
        ),
        "a file": with_file("llama", _marks("<s>", "</s>", *MARKS), fast | MIX),
        "a file, pad beyond it": with_file(
            "llama", _marks("<s>", "</s>"), fast | MIX | {"pad_token": "[PAD]"}
        ),
        "a file, flags": with_file(
            "llama", _marks("<s>", "</s>", rstrip=True, lstrip=True), fast | {"eos_token": "</s>"}
        ),
        "a file, other flags in its config": with_file(
            "llama",
            _marks("<s>", *MARKS),
            fast | {"added_tokens_decoder": added(MARKS, 301, single_word=True)},
        ),
        "a file, normalised pieces": with_file(
            "llama", _composed, fast | {"eos_token": "<|im_end|>"}
        ),
        "a file, extra pieces": with_file(
            "llama", _marks("<s>"), fast | {"extra_special_tokens": ["<mask>", "<|im_start|>"]}
        ),
        "a file, image piece": with_file(
            "llama",
            _marks("<s>", "<image>", "</s>"),
            fast | {"image_token": "<image>", "boi_token": "<pad>"},
        ),
    }


def multilingual(home):
    """Write M2M-100's files: a sentencepiece model, and a vocabulary without languages."""
    raw = proto("bpe", vocab_size=330)
    (home / "sentencepiece.bpe.model").write_bytes(raw)
    processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
    names = [processor.id_to_piece(i) for i in range(3, processor.vocab_size())]
    write(
        home / "vocab.json", {n: i for i, n in enumerate(["<s>", "<pad>", "</s>", "<unk>", *names])}
    )
    marks = {"additional_special_tokens": [f"__{code}__" for code in LANGUAGES["m2m100"].split()]}
    about = {"tokenizer_class": "M2M100Tokenizer", "src_lang": None}
    _about(home, "m2m_100", about, {"special_tokens_map": marks})


def of_many_languages(codes, *, legacy=False):
    """Return the maker of a folder of NLLB's: a tokenizer.json with languages behind its pieces."""

    def make(home):
        marks = ["<s>", "<pad>", "</s>", "<unk>"]
        engine = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        engine.pre_tokenizer = pre_tokenizers.Metaspace()
        engine.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=marks, show_progress=False)
        engine.train_from_iterator(LINES, trainer)
        engine.add_special_tokens([*codes, AddedToken("<mask>", lstrip=True)])
        engine.save(str(home / "tokenizer.json"))
        names = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
        about = names | {"tokenizer_class": "NllbTokenizer", "src_lang": codes[1]}
        about |= {"additional_special_tokens": codes, "legacy_behaviour": legacy}
        _about(home, "m2m_100", about | {"pad_token": "<pad>"}, {})

    return make


def _languages():
    uni, codes = proto("unigram", **SPACED), ["eng_Latn", "deu_Latn", "zho_Hans", "zho_Hant"]
    old = {"tokenizer_class": "MBartTokenizer", "src_lang": "ro_RO"}
    new = {"tokenizer_class": "MBart50Tokenizer"}
    return {
        "mbart": with_proto("mbart", "sentencepiece.bpe.model", uni, old),
        "mbart-50": with_proto("mbart", "sentencepiece.bpe.model", uni, new),
        "m2m-100": multilingual,
        "nllb": of_many_languages(codes),
        "nllb, as before": of_many_languages(codes, legacy=True),
    }


FOLDERS = _folders()
OF_LANGUAGES = _languages()
