"""`jaxgen eval` measures a split of a run, or any text with any model, in rows or in windows."""

import jax
import numpy as np
import pytest
from commands import measured

import jaxgen
from jaxgen import data, tokens
from jaxgen.data.rows import overlapping
from jaxgen.run import evaluation

TEXT = "the cat sat on a mat and ran to see my dog. " * 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The same small decoder in our layout and in the one of transformers, and its text."""
    home = tmp_path_factory.mktemp("models")
    (home / "text.md").write_text(TEXT)
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bpe", vocab_size=280), [TEXT])
    config = jaxgen.ModelConfig(
        vocab_size=280, context=16, layers=1, d_model=16, heads=2, norm="rms", positions="rope",
        feed="swiglu", biases="none", output="untied",
    )  # fmt: skip
    params = jaxgen.init(config, jax.random.key(0))
    for layout in ("jaxgen", "hf"):
        jaxgen.save(home / layout, config, params, tokenizer=tokenizer, layout=layout)
    return home


@pytest.mark.parametrize("layout", ["jaxgen", "hf"])
def test_any_model_is_measured_on_all_of_a_text_or_a_split(model, here, layout):
    files = f"data.files={model / 'text.md'}"
    whole = measured(here, model / layout, files)
    assert whole["text"] == "all of data.files" and whole["context"] == "16 tokens"
    part = measured(here, model / layout, files, "--split", "valid")
    assert int(part["tokens"]) < int(whole["tokens"]) / 10
    windows = measured(here, model / layout, files, "--stride", "4")
    assert windows["tokens"] == whole["tokens"] and "each 4" in windows["context"]
    assert measured(here, model / layout, files, "--stride", "16")["loss"] == whole["loss"]
    code, said = here("eval", model / layout)
    assert code == 2 and "no text of its own; give data.files=..." in said
    for stride in ("0", "17"):
        code, said = here("eval", model / layout, files, "--stride", stride)
        assert code == 2 and "stride" in said, said


def test_a_short_text_is_measured_without_the_rest_of_a_long_context(model, tmp_path, monkeypatch):
    config, params = jaxgen.load(model / "jaxgen")
    words = jaxgen.open(model / "jaxgen").tokenizer
    jaxgen.save(tmp_path / "long", config.replace(context=512), params, tokenizer=words)
    (tmp_path / "short.md").write_text(TEXT[:90])
    shapes, measure = [], evaluation.validate

    def watched(params, config, batches, lengths):
        batches = list(batches)
        shapes.extend(batch["tokens"].shape for batch in batches)
        return measure(params, config, batches, lengths)

    def measured():
        words = [f"data.files={tmp_path / 'short.md'}"]
        return evaluation.evaluate(tmp_path / "long", words, cache=tmp_path / "cache")

    monkeypatch.setattr(evaluation, "validate", watched)
    short = measured()
    monkeypatch.setattr(evaluation, "_fitted", lambda batches: batches)
    assert measured() == short
    assert shapes == [(1, 128), (8, 512)]


@pytest.mark.parametrize(("lengths", "width", "stride"), [([50], 16, 4), ([3, 40, 9, 2], 10, 10),
                         ([5], 16, 3), ([17], 16, 16), ([18], 16, 16)])  # fmt: skip
def test_windows_predict_each_token_once_from_most_of_the_context(tmp_path, lengths, width, stride):
    total = sum(lengths)
    shard = _shard(tmp_path, lengths)
    maker = lambda shard, **more: overlapping(shard, stride=stride, **more)  # noqa: E731
    seen = np.zeros(total, int)
    for batch in data.in_order(shard, context=width, batch=2, objective=maker):
        for row, start in enumerate(batch["index"]):
            for place in np.flatnonzero(batch["weights"][row]):
                target = start + place + 1
                assert batch["targets"][row, place] == shard.tokens[target]
                assert place >= min(width - stride, target - 1)
                seen[target] += 1
    begins = set(np.cumsum([0, *lengths[:-1]]))  # of a document the first token is not predicted
    assert [int(n) for n in seen] == [int(i not in begins) for i in range(total)]


def _shard(folder, lengths):
    from jaxgen.data.shard import ShardWriter, open_shard

    writer = ShardWriter(folder / "x.tokens", vocab_size=1000, tokenizer="x" * 64)
    writer.add(np.arange(1, sum(lengths) + 1, dtype=np.int64), list(lengths), sum(lengths))
    writer.close()
    return open_shard(folder / "x.tokens")
