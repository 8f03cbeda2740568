"""Make golden_contrastive.npz: what transformers' contrastive search finds on `contrastive_cases`.

Run it where torch and transformers 4.55 are, the newest that has this search, in two steps:
`python make_golden_contrastive.py export FOLDER` with jaxgen, then `... search FOLDER`.
"""

import sys
from pathlib import Path

import contrastive_cases as the
import numpy as np

GOLDEN = Path(__file__).with_name("golden_contrastive.npz")


def export(home: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from random_params import random_params

    import jaxgen

    for family, shape in the.MODELS.items():
        config = jaxgen.ModelConfig(**shape)
        jaxgen.save(home / family, config, random_params(config), layout="hf", family=family)


def search(home: Path) -> None:
    import torch
    import transformers

    arrays = {"versions": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    for family in the.MODELS:
        encoder = family == "bart"
        kind = transformers.AutoModelForSeq2SeqLM if encoder else transformers.AutoModelForCausalLM
        model = kind.from_pretrained(home / family, torch_dtype=torch.float32).eval()
        model.generation_config = transformers.GenerationConfig()
        for number, case in enumerate(the.CASES):
            for row, source in enumerate(the.sources()):
                ids = torch.tensor([source])
                stops = [the.STOP, *case.get("stop_ids", ())]
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=the.LENGTH,
                    do_sample=False,
                    top_k=case["top_k"],
                    penalty_alpha=case["contrastive"],
                    repetition_penalty=case.get("repetition_penalty", 1.0),
                    no_repeat_ngram_size=case.get("no_repeat_ngram", 0),
                    min_new_tokens=case.get("min_new_tokens"),
                    eos_token_id=stops,
                    pad_token_id=the.PAD,
                    **({"decoder_start_token_id": the.START} if encoder else {}),
                )
                new = out[0, 1 if encoder else len(source) :].numpy()
                arrays[f"{family}/{number}/{row}"] = new.astype(np.int16)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    {"export": export, "search": search}[sys.argv[1]](Path(sys.argv[2]))
