"""Make golden_search.npz: what transformers' `generate` finds on the model of `search_cases`.

Run it where torch and transformers 4.55 are, the newest that has all the searches that version 5
dropped: `python tests/parity_decoding/make_golden_search.py`.
"""

from pathlib import Path

import numpy as np
import search_cases as the
import torch
import transformers
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation.beam_constraints import DisjunctiveConstraint
from transformers.generation.beam_search import BeamHypotheses
from transformers.modeling_outputs import CausalLMOutput

GOLDEN = Path(__file__).with_name("golden_search.npz")


class Config(PretrainedConfig):
    model_type = "recurrent"

    def __init__(self, vocab_size=the.V, **rest):
        super().__init__(**rest)
        self.vocab_size = vocab_size
        self.num_hidden_layers = 1


class Recurrent(PreTrainedModel, GenerationMixin):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.table = {name: torch.from_numpy(x) for name, x in the.weights().items()}
        self.dummy = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **_):
        state = torch.zeros(len(input_ids), the.D)
        states = []
        for token in input_ids.T:
            state = torch.tanh(state @ self.table["turn"] + self.table["embed"][token])
            states.append(state)
        return CausalLMOutput(
            logits=torch.stack(states, 1) @ self.table["out"] + self.table["bias"]
        )

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}


def searched(model, case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [B, N, LENGTH] (-1 past the end) and scores [B, N]."""
    case = dict(case)
    stops = case.pop("stops", [the.STOP])
    number = case["num_beams"]
    single = number == 1
    out = model.generate(
        torch.from_numpy(the.PROMPTS),
        max_new_tokens=the.LENGTH,
        num_return_sequences=number,
        do_sample=False,
        use_cache=False,
        eos_token_id=stops or None,
        pad_token_id=the.PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **({} if single else case),
    )
    batch, width = len(the.PROMPTS), the.PROMPTS.shape[1]
    new = out.sequences[:, width:].numpy().reshape(batch, number, -1)
    tokens = np.full((batch, number, the.LENGTH), -1, np.int8)
    # Past its stop a text is filled with the pad or, in one of the searches, with the stop itself.
    ended = np.cumsum(np.isin(new, stops), axis=-1) - np.isin(new, stops) > 0
    tokens[..., : new.shape[-1]] = np.where(ended, -1, new)
    scores = np.zeros((batch, 1)) if single else out.sequences_scores.numpy()
    return tokens, scores.reshape(batch, number).astype(np.float32)


def mended(copy):
    """Return a copy of alternatives that does not share its progress with the original.

    In 4.55.4 it does, so that of two tokens that go on, the second is judged after the first.
    """

    def copied(self, stateful=False):
        new = copy(self, stateful)
        new.current_seq = list(new.current_seq)
        return new

    return copied


def named(add):
    """Return an `add` of texts whose beams may be unknown, on which 4.55.4 ends with an error."""

    def added(self, hyp, sum_logprobs, beam_indices=None, generated_len=None):
        return add(self, hyp, sum_logprobs, beam_indices or (), generated_len)

    return added


def main() -> None:
    BeamHypotheses.add = named(BeamHypotheses.add)
    DisjunctiveConstraint.copy = mended(DisjunctiveConstraint.copy)
    model = Recurrent(Config(vocab_size=the.V)).eval()
    arrays = {"versions": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    for kind, cases in {"plain": the.PLAIN, "groups": the.GROUPS, "words": the.WORDS}.items():
        for number, case in enumerate(cases):
            tokens, scores = searched(model, case)
            arrays[f"{kind}/{number}/tokens"], arrays[f"{kind}/{number}/scores"] = tokens, scores
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
