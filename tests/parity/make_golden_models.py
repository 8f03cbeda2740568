"""Makes golden/*.npz: what transformers computes for each case. Needs torch and transformers.

python tests/parity/make_golden_models.py [NAME ...]   (of golden/NAME.npz; default: all)
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import parity_cases as cases
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM


def model_of(family: str, settings: dict):
    """Return (model, shapes) of a case with its drawn weights, by the names that a file has.

    A file may hold a tensor for each expert where the model has one for all.
    """
    settings = {"attn_implementation": "eager"} | settings
    config = AutoConfig.for_model(family, **settings)
    how = {"attn_implementation": settings["attn_implementation"]}
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "model.safetensors"
        AutoModelForCausalLM.from_config(config, **how).save_pretrained(home)
        shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
        drawn = {name: cases.weight(name, shape) for name, shape in shapes.items()}
        save_file(drawn, file, metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(home, **how).eval()
    return model, {name: list(shape) for name, shape in sorted(shapes.items())}


def flat(state: torch.Tensor) -> np.ndarray:
    """Return hidden states [B, T, D]; of several streams [P, B, T, D] all in one row."""
    return (state if state.ndim == 3 else state.permute(1, 2, 0, 3).flatten(2)).numpy()


def is_wide(state: torch.Tensor, model) -> bool:
    """Return whether hidden states are not projected yet, as OPT's last ones may be."""
    return state.shape[-1] == model.config.hidden_size


@torch.no_grad()
def outputs(family: str, settings: dict) -> dict[str, np.ndarray]:
    """Return {about, logits, hidden, greedy} of a case."""
    model, shapes = model_of(family, settings)
    tokens = torch.from_numpy(cases.TOKENS)
    mask = torch.ones_like(tokens)
    mask[1, : cases.PADDED] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(tokens, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    start = tokens[:1, :8]
    greedy = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=cases.NEW,
        do_sample=False,
        eos_token_id=None,
    )
    model.config.architectures = [type(model).__name__]
    about = {
        "config": json.loads(model.config.to_json_string()),
        "shapes": shapes,
    }
    return {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "logits": out.logits.numpy(),
        "hidden": np.stack([flat(state) for state in out.hidden_states if is_wide(state, model)]),
        "greedy": greedy[0, start.shape[1] :].numpy(),
    }


@torch.no_grad()
def right_outputs(kind: tuple[str, str], settings: dict) -> dict[str, np.ndarray]:
    """Return {about, logits, hidden} of a case that is padded on the right."""
    family, name = kind
    model = getattr(transformers, name)(AutoConfig.for_model(family, **settings)).eval()
    weights = {n: t for n, t in model.named_parameters() if t.requires_grad}  # waves are frozen
    weights |= {n: t for n, t in model.named_buffers() if "logits_bias" in n}
    for tensor_name, tensor in sorted(weights.items()):
        tensor.copy_(torch.from_numpy(cases.weight(tensor_name, tuple(tensor.shape))))
    given = {"attention_mask": torch.from_numpy(cases.MASK), "output_hidden_states": True}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.from_numpy(cases.TARGETS)
    out = model(torch.from_numpy(cases.source(model.config.pad_token_id)), **given)
    if "start_logits" in out:
        logits = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        logits = out.last_hidden_state if "last_hidden_state" in out else out.logits
    more = {} if "pooler_output" not in out else {"pooled": out.pooler_output.numpy()}
    if model.config.is_encoder_decoder and model.can_generate():
        more |= {"greedy": written(model), "asked": written(model, **cases.ASKED)}
    states = out.get("decoder_hidden_states", out.get("hidden_states"))
    model.config.architectures = [name]
    about = {
        "config": json.loads(model.config.to_json_string()),
        "shapes": {n: list(tensor.shape) for n, tensor in weights.items()},
    }
    return {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "logits": logits.numpy(),
        "hidden": np.stack([state.numpy() for state in states]),
        **more,
    }


def written(model, **asked) -> np.ndarray:
    """Return what an encoder-decoder writes, its start left out; greedy unless asked otherwise."""
    greedy = {"max_new_tokens": cases.NEW, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    found = model.generate(
        torch.from_numpy(cases.source(model.config.pad_token_id)),
        attention_mask=torch.from_numpy(cases.MASK),
        use_cache=False,  # T5's is sized by the encoder's depth
        **(asked or greedy),
    )
    return found[:, 1:].numpy()


def vanilla_layers(theirs: dict) -> torch.nn.Transformer:
    """Return torch's own Transformer of the paper: post-norm, and no norms at the end."""
    from torch import nn

    form = {"batch_first": True, "activation": theirs["activation"], "dropout": 0.0}
    shape = [theirs[name] for name in ("d_model", "nhead", "dim_feedforward")]
    return nn.Transformer(
        theirs["d_model"],
        theirs["nhead"],
        custom_encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*shape, **form),
            theirs["num_encoder_layers"],
            enable_nested_tensor=False,
        ),
        custom_decoder=nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*shape, **form), theirs["num_decoder_layers"]
        ),
        batch_first=True,
    ).eval()


@torch.no_grad()
def vanilla_outputs() -> dict[str, np.ndarray]:
    """Return {about, logits, hidden} of torch.nn.Transformer with padded sources."""
    theirs = cases.VANILLA
    model, width = vanilla_layers(theirs), theirs["d_model"]
    weights = dict(model.named_parameters())
    for name, tensor in sorted(weights.items()):
        tensor.copy_(torch.from_numpy(cases.weight(name, tuple(tensor.shape))))
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    shapes["embed.weight"] = [cases.V, width]
    table = torch.from_numpy(cases.weight("embed.weight", (cases.V, width)))

    def embed(ids):
        place = np.arange(ids.shape[1])[:, None] / 10000 ** (2 * np.arange(width // 2) / width)
        waves = np.concatenate([np.sin(place), np.cos(place)], axis=1).astype(np.float32)
        return table[torch.from_numpy(ids)] * width**0.5 + torch.from_numpy(waves)

    padding = torch.from_numpy(cases.MASK == 0)
    length = cases.TARGETS.shape[1]
    hidden = model(
        embed(cases.source(0)),
        embed(cases.TARGETS),
        tgt_mask=torch.triu(torch.ones(length, length, dtype=torch.bool), 1),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    about = json.dumps({"config": theirs, "shapes": shapes})
    return {
        "about": np.frombuffer(about.encode(), np.uint8),
        "logits": (hidden @ table.T).numpy(),
        "hidden": hidden.numpy(),
    }


def main() -> None:
    """Write one file a family, and those of the cases that are padded on the right."""
    cases.GOLDEN.mkdir(exist_ok=True)
    wanted = sys.argv[1:] or [*cases.HOMES, *cases.CASES]
    for home in cases.HOMES & set(wanted):
        arrays = {
            f"{kind[1]} {name}/{what}": array
            for kind, named in cases.RIGHT.items()
            for name, settings in named.items()
            if cases.home(kind) == home
            for what, array in right_outputs(kind, settings).items()
        }
        if home == "right":
            arrays |= {f"vanilla/{what}": array for what, array in vanilla_outputs().items()}
        np.savez_compressed(cases.GOLDEN / f"{home}.npz", **arrays)
    for family, named in cases.CASES.items():
        if family not in wanted:
            continue
        arrays = {
            f"{name}/{what}": array
            for name, settings in named.items()
            for what, array in outputs(family, settings).items()
        }
        np.savez_compressed(cases.GOLDEN / f"{family}.npz", **arrays)
        print(family, len(named))


if __name__ == "__main__":
    main()
