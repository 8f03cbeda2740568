"""Scores of bias are those that lm-evaluation-harness's own model of transformers gives.

pip install -e ".[test,lm-eval]" transformers torch && python -m pytest THIS_FILE
"""

import pytest

from jaxgen.text.loaded_model import open_model
from jaxgen.text.tasks import scoring

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
models = pytest.importorskip("lm_eval.models.huggingface")
instances = pytest.importorskip("lm_eval.api.instance")

PAIRS = [
    ("", "She was a nurse, and he a smith."),
    ("", "He was a nurse, and she a smith."),
    ("I saw a man and a boy.\n\nQ: Who was late?\nA:", " the boy"),
    ("I saw a man and a boy.\n\nQ: Who was late?\nA:", " not known"),
    ("Many people live there. ", "They run well."),
]


def test_each_score_is_the_harnesss(tmp_path):
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, trainers

    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator([" ".join(pair) for pair in PAIRS] * 4, trainer)
    fast = transformers.GPT2TokenizerFast(tokenizer_object=engine)
    torch.manual_seed(0)
    about = {"vocab_size": len(fast), "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": fast.eos_token_id, "eos_token_id": fast.eos_token_id}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**about, **ends)).eval()
    for parameter in model.parameters():  # so that scores differ
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "gpt2")
    fast.save_pretrained(tmp_path / "gpt2")
    theirs = models.HFLM(pretrained=str(tmp_path / "gpt2"), device="cpu", batch_size=2)
    asked = [
        instances.Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)
    ]
    expected = [logp for logp, _ in theirs.loglikelihood(asked)]
    found = scoring.score_pairs(open_model(tmp_path / "gpt2"), PAIRS, batch=2)
    assert [logp for logp, _ in found] == pytest.approx(expected, abs=1e-4)
    assert len({round(logp, 3) for logp in expected}) == len(PAIRS)
