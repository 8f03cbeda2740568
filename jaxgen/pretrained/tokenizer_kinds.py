"""How transformers' classes of tokenizers read the files that came before tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


def _spaced(about: Mapping[str, Any]) -> dict[str, bool]:
    return {"add_prefix_space": bool(about.get("add_prefix_space"))}


_ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_FAIRSEQ = _ENDS | {
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
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
        {
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        words=lambda vocab, about, names: pipelines.word_piece(
            vocab,
            names,
            lowercase=bool(about.get("do_lower_case", True)),
            strip_accents=about.get("strip_accents"),
            chinese=bool(about.get("tokenize_chinese_chars", True)),
        ),
    ),
}
KINDS |= {"BartTokenizer": KINDS["RobertaTokenizer"], "DistilBertTokenizer": KINDS["BertTokenizer"]}
OWN = {
    "gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer",
    "bert": "BertTokenizer", "roberta": "RobertaTokenizer", "bart": "RobertaTokenizer",
    "t5": "T5Tokenizer",
}  # fmt: skip
GENERIC = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")


def kind_of(home: Path, about: Mapping[str, Any]) -> Kind:
    """Return how transformers reads a folder: by its tokenizer_class, or its model_type."""
    theirs = files.read_json(home / hub_read.CONFIG, "model config", hub_read.MAX_CONFIG)
    named = about.get("tokenizer_class") or theirs.get("tokenizer_class")
    model_type = theirs.get("model_type")
    if not isinstance(named, str):
        return KINDS[OWN[model_type]] if model_type in OWN else ANY
    named = named.removesuffix("Fast")
    if model_type == "mistral" or named in GENERIC or named + "Fast" in GENERIC:
        return ANY
    if named in KINDS:
        return KINDS[named]
    if (home / FILE).exists():
        return ANY
    raise CheckpointError(
        f"{home / CONFIG}: tokenizer_class={named!r} without {FILE} is not read; write one with "
        f"transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
