"""The gate after an import or export: transformers and we give the same ids and logits."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, DataError
from jaxgen.models import api
from jaxgen.pretrained import hub_read
from jaxgen.pretrained.generation_config import read_generation_config
from jaxgen.tokens import Tokenizer
from jaxgen.tokens.export import ends
from jaxgen.tokens.marian import Marian

ROWS, LENGTH = 2, 32
# float32: largest difference, relative to the largest logit. Below it: nats of KL per token.
LARGEST, DIVERGENCE = 1e-4, 1e-2

TRICKY = (  # what tokenizers are known to read differently
    "",
    " ",
    "  two  spaces   three ",
    "\ttab\tand space ",
    "a line\nanother\n\nand a third\n",
    "\r\nof Windows\r\n",
    "Caf\u00e9, cafe\u0301 and STRASSE or Stra\u00dfe",
    "\u6771\u4eac\u3068\ud55c\uad6d\uc5b4",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f680 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "<s> </s> <pad> <unk> [MASK] <|endoftext|> <0x41>",
    "a<s>b</s>c",
    "1234567890 3.14159 1,000,000 007",
    "don't we'll I'm it's 'quoted' \"too\"",
    "def f(x):\n    return x ** 2  # twice\n",
    "https://example.org/a?b=c&d=%20#e",
    "supercalifragilistic" * 20,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u2581 \u00a0\u2028\ufeff\u200b\x01",
    "the cat sat on the mat.",
)


def can_compare() -> bool:
    """Return whether torch and transformers are installed."""
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def lacking(hub: Path) -> str | None:
    """Return the packages without which a folder can't be compared; None: they are there."""
    if not can_compare():
        return "torch and transformers"
    about = files.read_json(hub / hub_read.CONFIG, "model config", hub_read.MAX_CONFIG)
    is_coded = bool(about.get("quantization_config"))
    return "compressed-tensors" if is_coded and find_spec("compressed_tensors") is None else None


def compare(hub: Path, config: ModelConfig, params: api.Params) -> str:
    """Return one line with the largest difference between transformers on `hub` and our model.

    Both read the same tokens; compared are logits, or without a head the last hidden states (and
    what a pooler makes of them). Of the vanilla family torch.nn.Transformer is the other side.
    Raises CheckpointError if they differ by more than rounding does.
    """
    length = min(LENGTH, config.context)
    # A classifier of transformers' that reads the last token wants padding for more than one row.
    rows = 1 if (config.head, config.head_kind) == ("classes", "none") else ROWS
    tokens = np.random.default_rng(0).integers(0, config.V, (rows, length))
    pad = read_generation_config(hub)[0].pad_token_id
    if pad is not None:  # padding is no text: RoBERTa does not even count it as a position
        tokens = np.where(tokens == pad, (pad + 1) % config.V, tokens)
    media = None
    if config.stem is not None:
        media = np.random.default_rng(1).standard_normal((rows, *config.stem.shape), np.float32)
    vision = config.vision
    if vision is not None:
        tokens = np.where(tokens == vision.token, (vision.token + 1) % config.V, tokens)
        if vision.vectors + length <= config.context:
            media = np.random.default_rng(1).standard_normal((rows, *vision.stem.shape), np.float32)
            places = np.full((rows, vision.vectors), vision.token)
            tokens = np.concatenate([places, tokens], axis=1)
    theirs = _theirs(hub, tokens, config, media)
    memory = None
    if config.topology == "encoder_decoder":
        memory = api.encode(params, config, tokens if media is None else None, media=media)
    seen = None if media is None or vision is None else media[:, None]
    out = api.apply(params, config, tokens, memory=memory, media=seen)
    logits = out.pooled if config.head == "pooled" else out.logits
    ours = np.asarray(out.hidden if logits is None else logits, np.float64)
    if ours.shape != theirs.shape:
        raise CheckpointError(f"{hub}: transformers has logits {theirs.shape}, we {ours.shape}")
    worst, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
    nats = float(_divergence(theirs, ours).mean())
    verdict = (
        f"largest difference {worst:.2g} of logits up to {scale:.3g}, "
        f"KL {nats:.2g} nats a token, {tokens.size} tokens"
    )
    exact = config.param_dtype == "float32"
    if not (worst <= LARGEST * max(1.0, scale) if exact else nats <= DIVERGENCE):
        raise CheckpointError(f"{hub}: transformers computes other logits: {verdict}")
    return verdict


def compare_texts(hub: Path, tokenizer: Tokenizer, topology: str) -> str:
    """Return one line about the ids and texts that transformers on `hub` and our tokenizer give.

    Raises CheckpointError with the first text of `TRICKY` that they read otherwise.
    """
    if isinstance(tokenizer, Marian):
        return "ids not compared: Marian's files are read by sentencepiece alone"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers  # pyright: ignore[reportMissingImports]

    family, _ = hub_read.read_config(hub)
    known = family.library == "transformers"
    kind = transformers.AutoTokenizer if known else transformers.PreTrainedTokenizerFast
    theirs = _opened(hub, "its tokenizer", kind, trust_remote_code=False)
    before, after = ends(tokenizer, topology)
    who = f"{hub}: transformers ({type(theirs).__name__})"
    texts = {text: ids for text in TRICKY if (ids := _ids(tokenizer, text)) is not None}
    for text, ids in texts.items():
        theirs_ids = theirs(text, split_special_tokens=True)["input_ids"]
        wanted = [*before, *ids, *after]
        if theirs_ids != wanted:
            raise CheckpointError(
                f"{who} reads {text!r:.60} as {theirs_ids[:12]}, we as {wanted[:12]}; where we are "
                f"right, tokenizer_class=PreTrainedTokenizerFast in tokenizer_config.json makes it "
                f"read tokenizer.json as it is"
            )
        shown = theirs.decode(ids, skip_special_tokens=True)
        if theirs.unk_token_id not in ids and shown != tokenizer.decode(ids):
            raise CheckpointError(f"{who} writes {shown!r:.60} for the ids of {text!r:.60}")
    return f"ids and texts of {len(texts)} texts equal"


def _opened(hub: Path, what: str, kind: Any, **how: Any) -> Any:
    """Return what transformers reads of a folder; its readers raise whatever a file makes them."""
    try:
        return kind.from_pretrained(hub, **how)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{hub}: transformers can't open {what}: {reason}") from error


def _ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """Return the ids of a text, None if it holds a character that the tokenizer lacks."""
    try:
        return tokenizer.encode(text)
    except DataError:
        return None


def _theirs(
    hub: Path, tokens: np.ndarray, config: ModelConfig, media: np.ndarray | None
) -> np.ndarray:
    dtype = config.param_dtype
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    family, _ = hub_read.read_config(hub)
    if family.library == "torch":
        return vanilla(hub, tokens, tokens, dtype)
    transformers.logging.disable_progress_bar()
    settings = _opened(hub, "its config", transformers.AutoConfig, trust_remote_code=False)
    named = (settings.architectures or [family.architecture])[0]
    kind: Any = getattr(transformers, named, getattr(transformers, family.architecture))
    model = _opened(hub, "its model", kind, dtype=getattr(torch, dtype)).eval()
    ids = torch.from_numpy(tokens)
    two = config.topology == "encoder_decoder"
    # All of it is text, also what some models would take for padding.
    more = {"attention_mask": torch.ones_like(ids)}
    if two:
        more |= {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}
    read = ids
    if media is not None:  # theirs have the channels first
        pixels = torch.from_numpy(np.moveaxis(media, -1, 1))
        if two:
            read, more = pixels, {"decoder_input_ids": ids}
        else:
            more |= {"pixel_values": pixels}
    with torch.no_grad():
        out = model(read, **more)
    if "start_logits" in out:
        values = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        names = ("logits", "prediction_logits", "pooler_output", "last_hidden_state")
        names = names[-1:] if config.head == "none" else names  # it would make up a pooler
        values = next(out[name] for name in names if out.get(name) is not None)
        if config.head == "token_classes" and values.ndim == 2:  # of one class
            values = values[..., None]
    return values.double().numpy()


def vanilla(hub: Path, source: np.ndarray, target: np.ndarray, dtype: str) -> np.ndarray:
    """Return the logits of torch.nn.Transformer with the weights of a folder."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    about = files.read_json(hub / hub_read.CONFIG, "model config", hub_read.MAX_CONFIG)
    shape = [about[name] for name in ("d_model", "nhead", "dim_feedforward")]
    form = {"batch_first": True, "activation": about["activation"]}
    form |= {"layer_norm_eps": about["layer_norm_eps"]}

    def tower(kind: Any, stack: Any, depth: int) -> Any:
        layer = kind(*shape, 0.0, **form)
        return stack(layer, depth, **({} if stack is nn.TransformerDecoder else _PLAIN))

    model = nn.Transformer(
        *(about["d_model"], about["nhead"]),
        custom_encoder=tower(
            nn.TransformerEncoderLayer, nn.TransformerEncoder, about["num_encoder_layers"]
        ),
        custom_decoder=tower(
            nn.TransformerDecoderLayer, nn.TransformerDecoder, about["num_decoder_layers"]
        ),
        batch_first=True,
    )
    stored = {
        name: torch.from_numpy(tensor.read().astype(np.float32))
        for name, tensor in hub_read.tensors(hub).items()
    }
    table = stored.pop("embed.weight").double()
    model.load_state_dict(stored)
    model = model.double().eval()

    def embed(ids: np.ndarray) -> Any:
        half = about["d_model"] // 2
        angle = np.arange(ids.shape[1])[:, None] / 10000.0 ** (np.arange(half) / half)
        waves = torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=1))
        return table[torch.from_numpy(ids)] * about["d_model"] ** 0.5 + waves

    causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.float64)
    with torch.no_grad():
        out = model(embed(source), embed(target), tgt_mask=causal, tgt_is_causal=True)
    return (out @ table.T).numpy()


_PLAIN = {"enable_nested_tensor": False}  # which has another, approximate path


def _divergence(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(one), log_softmax(other)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)
