"""Make golden.npz: what transformers' LogitsProcessors give for `decoding_cases`.

Run it where torch and transformers are: `python tests/parity_decoding/make_golden.py`.
"""

from pathlib import Path

import decoding_cases as the
import numpy as np
import torch
import transformers
from transformers.generation import logits_process as hf

GOLDEN = Path(__file__).with_name("golden.npz")


def processor(name: str, settings: dict, prompt: int, source: torch.Tensor):
    """Return transformers' processor of ours; their constructors do not agree on anything."""
    s = dict(settings)
    keep = {"min_tokens_to_keep": s.pop("keep")} if isinstance(s.get("keep"), int) else {}
    stop = s.get("stop")
    makers = {
        "temperature": lambda: hf.TemperatureLogitsWarper(float(s["value"])),
        "top_k": lambda: hf.TopKLogitsWarper(s["count"], **keep),
        "top_p": lambda: hf.TopPLogitsWarper(s["mass"], **keep),
        "top_h": lambda: hf.TopHLogitsWarper(s["share"]),
        "min_p": lambda: hf.MinPLogitsWarper(s["share"], **keep),
        "typical": lambda: hf.TypicalLogitsWarper(s["mass"], **keep),
        "epsilon": lambda: hf.EpsilonLogitsWarper(s["cutoff"], **keep),
        "eta": lambda: hf.EtaLogitsWarper(s["cutoff"], **keep),
        "renormalize": hf.LogitNormalization,
        "suppress": lambda: hf.SuppressTokensLogitsProcessor(s["tokens"]),
        "repetition_penalty": lambda: hf.RepetitionPenaltyLogitsProcessor(
            s["penalty"], prompt_ignore_length=prompt if s.get("over") == "new" else None
        ),
        "source_penalty": lambda: hf.EncoderRepetitionPenaltyLogitsProcessor(s["penalty"], source),
        "no_repeat_ngram": lambda: hf.NoRepeatNGramLogitsProcessor(s["size"]),
        "no_repeat_source": lambda: hf.EncoderNoRepeatNGramLogitsProcessor(s["size"], source),
        "min_length": lambda: hf.MinLengthLogitsProcessor(s["count"], stop),
        "min_new_tokens": lambda: hf.MinNewTokensLengthLogitsProcessor(prompt, s["count"], stop),
        "force_first": lambda: hf.ForcedBOSTokenLogitsProcessor(s["token"]),
        "force_last": lambda: hf.ForcedEOSTokenLogitsProcessor(prompt + s["length"], s["token"]),
        "length_decay": lambda: hf.ExponentialDecayLengthPenalty(
            (s["start"], s["factor"]), stop, prompt
        ),
        "suppress_first": lambda: hf.SuppressTokensAtBeginLogitsProcessor(s["tokens"], prompt),
        "sequence_bias": lambda: hf.SequenceBiasLogitsProcessor(s["biases"]),
        "bad_words": lambda: hf.NoBadWordsLogitsProcessor(s["words"], s.get("keep")),
    }
    return makers[name]()


def main() -> None:
    """Write golden.npz beside this file."""
    inputs = the.inputs()
    tokens, source = torch.tensor(inputs["tokens"]).long(), torch.tensor(inputs["source"]).long()
    outputs = []
    for chain, length in the.cases():
        rows = []
        for logits in inputs["logits"]:
            scores = torch.tensor(logits)
            for name, settings in chain:
                one = processor(name, settings, the.prompt_length(length), source)
                scores = one(tokens[:, :length], scores.clone())
            rows.append(scores.numpy())
        outputs.append(np.stack(rows))
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(GOLDEN, outputs=np.stack(outputs), versions=versions, **inputs)
    print(f"{len(outputs)} cases, {GOLDEN.stat().st_size} bytes, {versions}")


if __name__ == "__main__":
    main()
