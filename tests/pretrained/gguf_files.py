"""Hugging Face folders turned into GGUF files as convert_hf_to_gguf.py of llama.cpp does it.

Written from that script, not from our tables, so that these are tested against something.
"""

import json

import numpy as np

from jaxgen.store import gguf, safetensors
from jaxgen.tokens.pipelines import SPACE

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "bert.embeddings.word_embeddings": "token_embd",
    "bert.embeddings.position_embeddings": "position_embd",
    "bert.embeddings.token_type_embeddings": "token_types",
    "bert.embeddings.LayerNorm": "token_embd_norm",
}  # fmt: skip
T5 = {
    "shared": "token_embd", "lm_head": "output", "encoder.final_layer_norm": "enc.output_norm",
    "decoder.final_layer_norm": "dec.output_norm",
}  # fmt: skip
T5_PARTS = {
    "layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v", "layer.0.SelfAttention.o": "attn_o",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm", "DenseReluDense.wi_1": "ffn_up",
    "layer.1.EncDecAttention.q": "cross_attn_q", "layer.1.EncDecAttention.k": "cross_attn_k",
    "layer.1.EncDecAttention.v": "cross_attn_v", "layer.1.EncDecAttention.o": "cross_attn_o",
    "DenseReluDense.wi": "ffn_up", "DenseReluDense.wi_0": "ffn_gate",
    "DenseReluDense.wo": "ffn_down", "layer_norm": "ffn_norm",
    "layer.1.layer_norm": "cross_attn_norm",
}  # fmt: skip
GEMMA3N = {
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}  # fmt: skip
STREAMS = {
    "altup.correct_output_scale": "altup_correct_scale", "per_layer_input_gate": "inp_gate",
    "altup.correction_coefs": "altup_correct_coef", "per_layer_projection": "proj",
    "altup.prediction_coefs": "altup_predict_coef", "post_per_layer_input_norm": "post_norm",
    "altup.modality_router": "altup_router", "altup.router_norm": "altup_router_norm",
    "laurel.linear_left": "laurel_l", "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
}  # fmt: skip
LAYERS = ("model.layers.", "transformer.h.", "bert.encoder.layer.")
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    "attention.self.query": "attn_q", "attention.self.key": "attn_k",
    "attention.self.value": "attn_v", "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip
GEMMA2 = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def from_folder(folder, path, form="F32", tokenizer=None, more=None, less=None):
    """Write a folder's model as a GGUF file of F32 norms and matrices of `form`.

    more: further metadata; less: a key or a tensor that is left out.
    """
    theirs = json.loads((folder / "config.json").read_text())
    kind = theirs["model_type"].removesuffix("_text")
    heads = theirs.get("num_attention_heads", theirs.get("n_head"))
    arrays = {}
    for name, tensor in safetensors.open_file(folder / "model.safetensors").items():
        array = tensor.read().astype(np.float32)
        if kind == "gemma3n" and "altup_" in name:  # of all streams one tensor
            new = "altup_unembd_proj" if "unembed" in name else "altup_proj"
            arrays.setdefault(f"{new}.weight", []).append(array)
            continue
        new = renamed(f"{name}.weight" if name.endswith("_scale") else name, kind)
        if new is None:
            continue
        if kind in ("llama", "mistral") and ("attn_q." in new or "attn_k." in new):
            count = heads if "attn_q." in new else theirs["num_key_value_heads"]
            halves = array.reshape(count, 2, -1, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if kind.startswith("gemma") and kind != "gemma3n" and new.endswith("norm.weight"):
            array = array + 1
        if kind == "gpt2" and array.ndim == 2 and new.startswith("blk."):
            array = array.T
        arrays[new] = np.ascontiguousarray(array)
    if (theirs.get("rope_scaling") or {}).get("rope_type") == "llama3":
        arrays["rope_freqs.weight"] = llama3(theirs, theirs["hidden_size"] // heads)
    arrays = {n: np.stack(a) if isinstance(a, list) else a for n, a in arrays.items()}
    shapes = {n: (form if a.ndim > 1 else "F32", a.shape) for n, a in arrays.items()}
    metadata = {
        **keys(theirs, "llama" if kind == "mistral" else kind),
        **(tokenizer or {}),
        **(more or {}),
    }
    metadata.pop(less, None), shapes.pop(less, None)
    gguf.write_gguf(path, metadata, shapes, arrays.__getitem__)
    return path


def renamed(name, kind):
    base, _, end = name.rpartition(".")
    if kind.endswith("t5"):
        if base in T5:
            return f"{T5[base]}.{end}"
        tower, _, number, part = base.split(".", 3)
        part = part.removeprefix("layer.1." if tower == "encoder" else "layer.2.")
        return f"{tower[:3]}.blk.{number}.{T5_PARTS[part]}.{end}"
    if base in NAMES | GEMMA3N:
        return f"{(NAMES | GEMMA3N)[base]}.{end}"
    for home in LAYERS:
        if base.startswith(home):
            number, _, part = base.removeprefix(home).partition(".")
            parts = PARTS | (GEMMA2 if kind in ("gemma2", "gemma3", "gemma3n") else {}) | STREAMS
            return f"blk.{number}.{parts[part]}.{end}"
    return None


def keys(theirs, kind):
    u32, f32 = np.uint32, np.float32
    alone = str(theirs["architectures"][0]).endswith("EncoderModel")
    kind = "t5" + "encoder" * alone if kind.endswith("t5") else kind
    found = {"general.architecture": kind}
    if kind == "gemma3n":
        found |= {
            "gemma3n.altup.active_idx": u32(0),
            "gemma3n.altup.num_inputs": u32(theirs["altup_num_inputs"]),
            "gemma3n.embedding_length_per_layer_input": u32(theirs["hidden_size_per_layer_input"]),
            "gemma3n.attention.shared_kv_layers": u32(theirs["num_kv_shared_layers"]),
            "gemma3n.attention.sliding_window_pattern": np.asarray(
                [name == "sliding_attention" for name in theirs["layer_types"]]),
            "gemma3n.activation_sparsity_scale": np.asarray(
                [1.6448536 if cut else -np.inf for cut in theirs["activation_sparsity_pattern"]],
                np.float32),
            "gemma3n.feed_forward_length": np.asarray(theirs.pop("intermediate_size"), np.int32),
        }  # fmt: skip
    if kind == "t5":
        found["t5.decoder_start_token_id"] = u32(0)
        found["t5.decoder_block_count"] = u32(theirs["num_decoder_layers"])
    if kind == "bert":
        found["bert.attention.causal"] = False
    given = {
        "context_length": ("max_position_embeddings", "n_positions"),
        "embedding_length": ("hidden_size", "n_embd", "d_model"),
        "block_count": ("num_hidden_layers", "n_layer", "num_layers"),
        "feed_forward_length": ("intermediate_size", "n_inner", "d_ff"),
        "attention.head_count": ("num_attention_heads", "n_head", "num_heads"),
        "attention.relative_buckets_count": ("relative_attention_num_buckets",),
        "attention.head_count_kv": ("num_key_value_heads",),
        "attention.key_length": ("head_dim", "d_kv"),
        "attention.value_length": ("head_dim", "d_kv"),
        "attention.sliding_window": ("sliding_window",) if kind.startswith("gemma") else (),
    }
    t5 = kind.startswith("t5")  # which has both
    numbers = {
        "rope.freq_base": ("rope_theta",),
        "attention.layer_norm_rms_epsilon": ("rms_norm_eps",) + ("layer_norm_epsilon",) * t5,
        "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon"),
        "attn_logit_softcapping": ("attn_logit_softcapping",),
        "final_logit_softcapping": ("final_logit_softcapping",),
    }
    for dtype, names in ((u32, given), (f32, numbers)):
        for key, options in names.items():
            value = next((theirs[o] for o in options if theirs.get(o) is not None), None)
            if value is not None:
                found[f"{kind}.{key}"] = dtype(value)
    scaling = theirs.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        found[f"{kind}.rope.scaling.type"] = scaling["rope_type"]
        found[f"{kind}.rope.scaling.factor"] = f32(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        before = u32(scaling["original_max_position_embeddings"])
        found[f"{kind}.rope.scaling.original_context_length"] = before
    return found


def llama3(theirs, width):
    """The factors that generate_extra_tensors writes."""
    scaling, found = theirs["rope_scaling"], []
    for i in range(0, width, 2):
        wave = 2 * np.pi * theirs["rope_theta"] ** (i / width)
        before = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if wave < before / high:
            found.append(1)
        elif wave > before / low:
            found.append(scaling["factor"])
        else:
            smooth = (before / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.asarray(found, np.float32)


def gpt2_tokenizer(about, pre="gpt-2", **ids):
    """The metadata of a byte-level tokenizer.json, parsed."""
    vocab, added = about["model"]["vocab"], {r["content"]: r for r in about["added_tokens"]}
    tokens = sorted(vocab | {n: r["id"] for n, r in added.items()}, key=(
        vocab | {n: r["id"] for n, r in added.items()}).get)  # fmt: skip
    merges = [m if isinstance(m, str) else " ".join(m) for m in about["model"]["merges"]]
    kinds = [(3 if added[t]["special"] else 4) if t in added else 1 for t in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.asarray(kinds, np.int32),
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{name}": np.uint32(i) for name, i in ids.items()},
    }


def llama_tokenizer(proto, **more):
    """The metadata of a sentencepiece model."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.name for piece in proto.pieces],
        "tokenizer.ggml.scores": np.asarray([p.score for p in proto.pieces], np.float32),
        "tokenizer.ggml.token_type": np.asarray([p.kind for p in proto.pieces], np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        **more,
    }


def bert_tokenizer(words):
    """The metadata of a vocab.txt."""
    special = [w.startswith("[") and w.endswith("]") for w in words]
    marked = [
        w if s else w.removeprefix("##") if w.startswith("##") else SPACE + w
        for w, s in zip(words, special, strict=True)
    ]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": marked,
        "tokenizer.ggml.token_type": np.asarray([3 if s else 1 for s in special], np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(words.index("[CLS]")),
        "tokenizer.ggml.seperator_token_id": np.uint32(words.index("[SEP]")),
        "tokenizer.ggml.unknown_token_id": np.uint32(words.index("[UNK]")),
        "tokenizer.ggml.padding_token_id": np.uint32(words.index("[PAD]")),
    }
