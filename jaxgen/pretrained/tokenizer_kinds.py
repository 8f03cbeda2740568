"""How transformers' classes of tokenizers read the files that came before tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.pretrained import hub_read
from jaxgen.tokens import modelproto, pipelines
from jaxgen.tokens.pipelines import Json

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Kind:
    """A class of transformers' tokenizers: what it names by itself, and how it reads its files."""

    names: Mapping[str, str]
    proto: Callable[[modelproto.Proto, Mapping[str, Any], Mapping[str, Any]], Json] | None = None
    merges: Callable[[dict, list, Mapping[str, Any], Mapping[str, Any]], Json] | None = None
    words: Callable[[dict, Mapping[str, Any], Mapping[str, Any]], Json] | None = None
    begins: bool = False  # whether it puts bos before a text where its config does not say
    pieces: bool = True  # whether the control pieces of a sentencepiece model are special
    types: bool = False  # whether it numbers the two texts of a pair where its config does not say


def _llama(proto: modelproto.Proto, about: Mapping[str, Any], names: Mapping[str, Any]) -> Json:
    if proto.model_type != modelproto.BPE:
        return pipelines.sentencepiece(proto)
    space = about.get("add_prefix_space")
    return pipelines.llama(
        proto,
        legacy=bool(about.get("legacy", False)),
        add_prefix_space=True if space is None else bool(space),
    )


def _t5(proto: modelproto.Proto, about: Mapping[str, Any], names: Mapping[str, Any]) -> Json:
    extra = about.get("extra_ids", pipelines.SENTINELS)
    if type(extra) is not int or not 0 <= extra < 10_000:
        raise CheckpointError(f"extra_ids={extra!r} of {CONFIG} is no number of sentinels")
    converted = pipelines.t5(proto, extra_ids=extra, eos=names["eos_token"])
    rows = [pipelines.added_token(f"<extra_id_{i}>") for i in range(extra)]
    return converted | {"sentinels": rows}


# mBART's languages: the first 25 of its first version, all 52 of mBART-50.
LANGUAGES = """
ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV
my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID
ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA
ur_PK xh_ZA gl_ES sl_SI
""".split()


def _mbart(languages: int, *, words: bool) -> Callable[..., Json]:
    def convert(
        proto: modelproto.Proto, about: Mapping[str, Any], names: Mapping[str, Any]
    ) -> Json:
        codes = LANGUAGES[:languages]
        rows = [pipelines.added_token(code) for code in codes]
        mask = pipelines.added_token(names["mask_token"]) | {"lstrip": True}
        return pipelines.mbart(proto, names, codes, words=words) | {"sentinels": [*rows, mask]}

    return convert


def _pegasus(proto: modelproto.Proto, about: Mapping[str, Any], names: Mapping[str, Any]) -> Json:
    offset, sentence = about.get("offset", 103), about.get("mask_token_sent", "<mask_1>")
    if type(offset) is not int or not 2 <= offset < 10_000 or not isinstance(sentence, str):
        raise CheckpointError(
            f"{CONFIG}: offset={offset!r:.40}, mask_token_sent={sentence!r:.40}; fetch it again"
        )
    rows = [pipelines.added_token(f"<unk_{i}>") for i in range(2, offset)]
    converted = pipelines.pegasus(proto, names, offset=offset, sentence=sentence)
    return converted | {"sentinels": [pipelines.added_token(sentence), *rows]}


def _word_piece(
    vocab: dict, about: Mapping[str, Any], names: Mapping[str, Any], *, double: bool = False
) -> Json:
    return pipelines.word_piece(
        vocab,
        names,
        lowercase=bool(about.get("do_lower_case", True)),
        strip_accents=about.get("strip_accents"),
        chinese=bool(about.get("tokenize_chinese_chars", True)),
        double=double,
    )


def _spaced(about: Mapping[str, Any]) -> dict[str, bool]:
    return {"add_prefix_space": bool(about.get("add_prefix_space"))}


_ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_FAIRSEQ = _ENDS | {
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_BERT = {"sep_token": "[SEP]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
_BERT_ENDS = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
ANY = Kind(
    {},
    proto=lambda proto, about, names: pipelines.sentencepiece(
        proto, legacy=bool(about.get("legacy", True))
    ),
    merges=lambda vocab, merges, about, names: pipelines.byte_level(
        vocab, merges, **_spaced(about)
    ),
)
KINDS = {
    "GPT2Tokenizer": replace(ANY, names=_GPT2, proto=None),
    "LlamaTokenizer": Kind(_ENDS, proto=_llama, begins=True),
    "GemmaTokenizer": Kind(
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        proto=lambda proto, about, names: pipelines.gemma(proto, names),
        begins=True,
    ),
    "Qwen2Tokenizer": Kind(
        {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        merges=lambda vocab, merges, about, names: pipelines.qwen2(vocab, merges, **_spaced(about)),
    ),
    "RobertaTokenizer": Kind(
        _FAIRSEQ,
        merges=lambda vocab, merges, about, names: pipelines.roberta(
            vocab,
            merges,
            names,
            **_spaced(about),
            trim_offsets=bool(about.get("trim_offsets", True)),
        ),
    ),
    "XLMRobertaTokenizer": Kind(
        _FAIRSEQ,
        proto=lambda proto, about, names: pipelines.xlm_roberta(proto, names),
        pieces=False,
    ),
    "T5Tokenizer": Kind(
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}, proto=_t5
    ),
    "BertTokenizer": Kind(
        _BERT | {"unk_token": "[UNK]", "pad_token": "[PAD]"}, words=_word_piece, types=True
    ),
    "MPNetTokenizer": Kind(
        _FAIRSEQ | {"unk_token": "[UNK]"}, words=partial(_word_piece, double=True)
    ),
    "AlbertTokenizer": Kind(
        _BERT | _BERT_ENDS | {"unk_token": "<unk>", "pad_token": "<pad>"},
        proto=lambda proto, about, names: pipelines.albert(
            proto,
            names,
            lowercase=bool(about.get("do_lower_case", True)),
            accents=bool(about.get("keep_accents")),
            prefix=bool(about.get("add_prefix_space", True)),
        ),
    ),
    "DebertaV2Tokenizer": Kind(
        _BERT | _BERT_ENDS | {"unk_token": "[UNK]", "pad_token": "[PAD]"},
        proto=lambda proto, about, names: pipelines.deberta(
            proto,
            names,
            lowercase=bool(about.get("do_lower_case")),
            punctuation=bool(about.get("split_by_punct")),
            prefix=bool(about.get("add_prefix_space", True)),
        ),
        types=True,
    ),
}
KINDS |= {
    "MBartTokenizer": Kind(_FAIRSEQ, proto=_mbart(25, words=True), pieces=False),
    "MBart50Tokenizer": Kind(_FAIRSEQ, proto=_mbart(52, words=False), pieces=False),
    "PegasusTokenizer": Kind(
        {k: _FAIRSEQ[k] for k in ("eos_token", "unk_token", "pad_token")}
        | {"mask_token": "<mask_2>"},
        proto=_pegasus,
        pieces=False,
    ),
    "BlenderbotTokenizer": Kind(
        _FAIRSEQ,
        merges=lambda vocab, merges, about, names: pipelines.byte_level(
            vocab, merges, add_prefix_space=bool(about.get("add_prefix_space", True))
        ),
    ),
}
SAME = {
    "BartTokenizer": "RobertaTokenizer", "MT5Tokenizer": "T5Tokenizer",
    "DistilBertTokenizer": "BertTokenizer", "ElectraTokenizer": "BertTokenizer",
}  # fmt: skip
KINDS |= {name: KINDS[own] for name, own in SAME.items()}
OWN = {
    "gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer",
    "bert": "BertTokenizer", "roberta": "RobertaTokenizer", "bart": "RobertaTokenizer",
    "t5": "T5Tokenizer", "mt5": "T5Tokenizer", "pegasus": "PegasusTokenizer",
    "distilbert": "BertTokenizer", "electra": "BertTokenizer", "mpnet": "MPNetTokenizer",
    "albert": "AlbertTokenizer", "deberta-v2": "DebertaV2Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "opt": "GPT2Tokenizer",
    "mbart": "MBartTokenizer", "m2m_100": "M2M100Tokenizer", "blenderbot": "BlenderbotTokenizer",
}  # fmt: skip
GENERIC = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")


def class_of(home: Path, about: Mapping[str, Any]) -> str | None:
    """Return the class of tokenizers that a folder names, or else that of its model_type."""
    theirs = files.read_json(home / hub_read.CONFIG, "model config", hub_read.MAX_CONFIG)
    named = about.get("tokenizer_class") or theirs.get("tokenizer_class")
    if not isinstance(named, str):
        return OWN.get(str(theirs.get("model_type")))
    return named.removesuffix("Fast")


def kind_of(home: Path, about: Mapping[str, Any]) -> Kind:
    """Return how transformers reads a folder: by its tokenizer_class, or its model_type."""
    theirs = files.read_json(home / hub_read.CONFIG, "model config", hub_read.MAX_CONFIG)
    named, model_type = class_of(home, about), theirs.get("model_type")
    if named is None:
        return ANY
    if model_type == "mistral" or named in GENERIC or named + "Fast" in GENERIC:
        return ANY
    if named in KINDS:
        return KINDS[named]
    if (home / FILE).exists():
        return replace(ANY, types=True)
    raise CheckpointError(
        f"{home / CONFIG}: tokenizer_class={named!r} without {FILE} is not read; write one with "
        f"transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
