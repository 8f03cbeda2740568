"""Makes golden/*.npz: what transformers computes for each case. Needs torch and transformers.

python tests/parity/make_golden_models.py
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import parity_cases as cases
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM


def model_of(family: str, settings: dict):
    """Return the model of a case with its drawn weights."""
    config = AutoConfig.for_model(family, attn_implementation="eager", **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):  # a tied tensor is there once
            tensor.copy_(torch.from_numpy(cases.weight(name, tuple(tensor.shape))))
    return model


@torch.no_grad()
def outputs(family: str, settings: dict) -> dict[str, np.ndarray]:
    """Return {about, logits, hidden, greedy} of a case."""
    model = model_of(family, settings)
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
        "shapes": {name: list(tensor.shape) for name, tensor in model.named_parameters()},
    }
    return {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "logits": out.logits.numpy(),
        "hidden": np.stack([state.numpy() for state in out.hidden_states]),
        "greedy": greedy[0, start.shape[1] :].numpy(),
    }


@torch.no_grad()
def right_outputs(kind: tuple[str, str], settings: dict) -> dict[str, np.ndarray]:
    """Return {about, logits, hidden} of a case that is padded on the right."""
    family, name = kind
    model = getattr(transformers, name)(AutoConfig.for_model(family, **settings)).eval()
    weights = dict(model.named_parameters())
    weights |= {n: t for n, t in model.named_buffers() if "logits_bias" in n}
    weights = {n: t for n, t in weights.items() if family != "marian" or "positions" not in n}
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
    states = out.decoder_hidden_states if model.config.is_encoder_decoder else out.hidden_states
    model.config.architectures = [name]
    about = {
        "config": json.loads(model.config.to_json_string()),
        "shapes": {n: list(tensor.shape) for n, tensor in weights.items()},
    }
    return {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "logits": logits.numpy(),
        "hidden": np.stack([state.numpy() for state in states]),
    }


def main() -> None:
    """Write one file a family, and one of the cases that are padded on the right."""
    cases.GOLDEN.mkdir(exist_ok=True)
    arrays = {
        f"{kind[1]} {name}/{what}": array
        for kind, named in cases.RIGHT.items()
        for name, settings in named.items()
        for what, array in right_outputs(kind, settings).items()
    }
    np.savez_compressed(cases.GOLDEN / "right.npz", **arrays)
    for family, named in cases.CASES.items():
        arrays = {
            f"{name}/{what}": array
            for name, settings in named.items()
            for what, array in outputs(family, settings).items()
        }
        np.savez_compressed(cases.GOLDEN / f"{family}.npz", **arrays)
        print(family, len(named))


if __name__ == "__main__":
    main()
