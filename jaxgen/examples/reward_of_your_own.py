"""A reward of your own: GRPO on prompts in a file, judged by a function of text.

The same as a config of `jaxgen train`, whose policy.reward names a function as FILE.py:function.
The model, which has learnt nothing yet, finds out that an answer in digits is what is wanted.
"""

import json
import tempfile
from pathlib import Path

import jax

import jaxgen
from jaxgen import run
from jaxgen.tokens import TokenizerSettings, train


def digits(prompts, completions, records):
    """Return the share of digits in each completion, for records that ask for them.

    prompts: as in the records; completions: texts; records: all fields of each.
    """
    return [
        sum(c.isdecimal() for c in text) / max(len(text), 1) if record["wants"] == "digits" else 0.0
        for text, record in zip(completions, records, strict=True)
    ]


def main() -> None:
    home = tempfile.TemporaryDirectory()
    folder = Path(home.name)
    config = jaxgen.ModelConfig(
        vocab_size=259, context=12, layers=1, d_model=32, heads=2, positions="rope"
    )
    params = jaxgen.init(config, jax.random.key(0))
    tokenizer = train(TokenizerSettings(kind="bytes"), [])
    jaxgen.save(folder / "base", config, params, tokenizer=tokenizer)
    records = [{"prompt": f"{n}?", "wants": "digits"} for n in range(100)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))

    settings = run.build_settings({
        "init_from": str(folder / "base"),
        "data": {"files": [str(folder / "prompts.jsonl")], "test_fraction": 0.0},
        "objective": {"name": "policy", "target": 6},
        "policy": {"reward": f"{__file__}:digits", "group": 8},
        "train": {"steps": 40, "batch": 64, "learning_rate": 0.02, "warmup": 5,
                  "validate_every": 40, "track": []},
        "checkpoint": {"every": 40},
    })  # fmt: skip
    run.train(settings, folder / "run", cache=folder / "cache")
    rewards = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
    first, last = (row["reward"] for row in (rewards[0], rewards[-1]))
    print(f"share of digits: {first:.2f} at first, {last:.2f} after training")
    assert last > 0.9
    print(repr(jaxgen.open(folder / "run").generate("7?", temperature=0.0, max_new_tokens=6)))
    home.cleanup()


if __name__ == "__main__":
    main()
