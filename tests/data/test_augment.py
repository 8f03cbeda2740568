"""Changed texts: what each change may do, and that seed, epoch and record decide it alone."""

import random
from collections import Counter
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, tokens
from jaxgen.data.augment.rows import Augmented
from jaxgen.data.augment.settings import OF_TEXT, AugmentSettings
from jaxgen.data.augment.texts import KEYS, change, read_tools
from jaxgen.data.augment.words import split, words_of
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.run.settings import build_settings
from jaxgen.train.mixup import mixup_loss

TEXTS = [
    f"{who} {does} a {how} {what} near the river, and then goes {where}."
    for who in ("Ada", "Bob")
    for does in ("sees", "buys")
    for how in ("red", "blue", "green")
    for what in ("boat", "car", "house")
    for where in ("home", "away")
]
LABELS = ["odd" if n % 4 == 0 else "even" for n in range(len(TEXTS))]


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.txt").write_text("he she\nred, blue\n")
    return tmp_path / "pairs.txt"


def changed(kind, text=TEXTS[0], seed=0, **more):
    own = AugmentSettings(
        kind=kind, **{"similarity": -1.0} if kind in ("replace", "insert") else {}, **more
    )
    return change(text, own, read_tools(own, lambda: TEXTS), random.Random(seed))


def is_part(one, other):
    rest = iter(other)
    return all(word in rest for word in one)


def test_each_change_does_what_it_says_and_no_more():
    own = words_of(TEXTS[0])
    for seed in range(5):
        new = {
            kind: changed(kind, seed=seed, rate=0.3) for kind in OF_TEXT if kind != "counterfactual"
        }
        words = {kind: words_of(text) for kind, text in new.items()}
        assert all(text != TEXTS[0] for text in new.values())
        assert len(words["replace"]) == len(own) and words["replace"][0][0].isupper()
        known = {word.lower() for text in TEXTS for word in words_of(text)}
        assert {word.lower() for word in words["replace"]} <= known
        assert is_part(own, words["insert"]) and len(words["insert"]) == len(own) + 4
        assert Counter(words["swap"]) == Counter(own)
        assert is_part(words["delete"], own) and len(words["delete"]) == len(own) - 4
        assert split(new["swap"])[::2] == split(TEXTS[0])[::2]  # what stands between words stays
        slips = [(a, b) for a, b in zip(TEXTS[0], new["keyboard"], strict=True) if a != b]
        assert slips and all(b.lower() in KEYS[a.lower()] for a, b in slips)
    assert changed("ocr", "modern clue", rate=1.0) != "modern clue"
    assert changed("delete", "one", rate=1.0) == "one"
    assert changed("swap", "one") == "one" and changed("keyboard", "…") == "…"


def test_counterparts_are_exchanged_both_ways_with_their_capitals(pairs, tmp_path):
    text = "He said: the RED car is hers, she says."
    swapped = changed("counterfactual", text, file=pairs)
    assert swapped == "She said: the BLUE car is hers, he says."
    assert changed("counterfactual", swapped, file=pairs) == text
    pairs.write_text("he she\nshe they\n")
    with pytest.raises(DataError, match=r"pairs.txt:2: 'she they' must be two different words"):
        changed("counterfactual", text, file=pairs)
    with pytest.raises(CheckpointError, match="none: no such file of pairs"):
        changed("counterfactual", text, file=tmp_path / "none")


def test_variants_are_those_of_the_text(tmp_path):
    file = tmp_path / "variants.jsonl"
    file.write_text('{"text": "one", "variants": ["two", "three"]}\n')
    drawn = {changed("variants", "one", seed, file=file) for seed in range(20)}
    assert drawn == {"two", "three"} and changed("variants", "four", file=file) == "four"
    file.write_text('{"text": "one"}\n')
    with pytest.raises(ConfigError, match=r"variants.jsonl:1 is no .*'variants'"):
        changed("variants", "one", file=file)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    home = tmp_path_factory.mktemp("augment")
    lines = [
        f'{{"text": "{text}", "label": "{label}"}}'
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    (home / "texts.jsonl").write_text("\n".join(lines))
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bpe", vocab_size=320), TEXTS)
    settings = data.DataSettings(
        files=(str(home / "texts.jsonl"),),
        sides=("text", "label"),
        valid_fraction=0,
        test_fraction=0,
    )
    return tokenizer, data.prepare(
        settings, tokenizer, home / "cache", form="classes", labels=("even", "odd")
    ).train


def texts_of(tokenizer, batch):
    return [tokenizer.decode([i for i in row if i > 3]) for row in batch["tokens"].tolist()]


def batches_of(shard, *settings, seed=0, **more):
    tokenizer, rows = shard
    objective = Augmented(settings, tokenizer)
    return data.batches(rows, context=96, batch=6, seed=seed, objective=objective, **more)


CHANGES = [
    AugmentSettings(kind="swap"),
    AugmentSettings(kind="pieces", rate=0.5),
    AugmentSettings(kind="keyboard"),
]


def test_a_batch_is_the_same_after_a_restart_whoever_makes_it(shard):
    whole = batches_of(shard, *CHANGES)
    batches = [next(whole) for _ in range(14)]  # more than two epochs
    whole.close()
    again = batches_of(shard, *CHANGES)
    again.restore({**whole.state(), "step": 9})
    halves = [batches_of(shard, *CHANGES, start=9, process=(n, 2)) for n in range(2)]
    for step in range(9, 14):
        one, parts = next(again), [next(half) for half in halves]
        for name, array in batches[step].items():
            np.testing.assert_array_equal(array, one[name])
            np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))
    other = batches_of(shard, *CHANGES[:2])
    with pytest.raises(DataError, match="objective='classes, augmented"):
        other.restore(whole.state())
    for one in (again, other, *halves):
        one.close()


def test_texts_change_with_the_epoch_and_keep_their_labels(shard):
    tokenizer, rows = shard
    objective = Augmented((AugmentSettings(kind="swap"),), tokenizer)
    reader = objective(rows, context=96, seed=0, ordered=False)
    plain = objective(rows, context=96, seed=0, ordered=True)
    numbers, keys = np.arange(reader.count), np.zeros(reader.count, np.uint64)
    epochs = [reader.batch(numbers, np.full(reader.count, e), keys) for e in range(2)]
    as_it_was = plain.batch(numbers, np.full(reader.count, -1), keys)
    assert texts_of(tokenizer, as_it_was) == TEXTS
    first, second = (texts_of(tokenizer, batch) for batch in epochs)
    for text, one, other, batch in zip(TEXTS, first, second, range(len(TEXTS)), strict=True):
        assert sorted(words_of(one)) == sorted(words_of(text)) == sorted(words_of(other))
        assert (
            epochs[0]["targets"][batch]
            == epochs[1]["targets"][batch]
            == as_it_was["targets"][batch]
        )
    assert 0.3 < np.mean([a != b for a, b in zip(TEXTS, first, strict=True)]) < 0.7
    assert first != second
    other = Augmented((AugmentSettings(kind="swap"),), tokenizer)(
        rows, context=96, seed=1, ordered=False
    )
    batch = other.batch(numbers, np.zeros(reader.count, np.int64), keys)
    assert first != texts_of(tokenizer, batch)  # another seed
    assert len({a == b for a, b in zip(TEXTS, first, strict=True)}) == 2  # each record by itself


def test_a_text_that_grows_is_cut_and_one_that_shrinks_is_padded(shard):
    tokenizer, rows = shard
    for kind, rate in (("pieces", 1.0), ("delete", 0.9)):
        objective = Augmented((AugmentSettings(kind=kind, rate=rate, chance=1.0),), tokenizer)
        reader = objective(rows, context=24, seed=0, ordered=False)
        numbers = np.array([reader.count - 1, -1, 0])
        batch = reader.batch(numbers, np.zeros(3, np.int64), np.zeros(3, np.uint64))
        assert batch["tokens"].shape == (3, 24) and not batch["segments"][1].any()
        assert batch["segments"].sum(1).tolist()[0] == (
            24 if kind == "pieces" else 24 - (batch["segments"][0] == 0).sum()
        )
        assert (batch["segments"][0].sum() == 24) == (kind == "pieces")


def test_balanced_classes_have_as_many_rows_and_every_text_has_its_turn(shard):
    tokenizer, rows = shard
    reader = Augmented((AugmentSettings(kind="balance"),), tokenizer)(
        rows, context=96, seed=3, ordered=False
    )
    numbers, seen = np.arange(reader.count), []
    for epoch in range(2):
        batch = reader.batch(
            numbers, np.full(reader.count, epoch), np.zeros(reader.count, np.uint64)
        )
        assert np.bincount(batch["targets"][:, 0]).tolist() == [36, 36]
        seen += zip(texts_of(tokenizer, batch), batch["targets"][:, 0].tolist(), strict=True)
    names = ("even", "odd")
    assert all(LABELS[TEXTS.index(text)] == names[label] for text, label in seen)
    counts = Counter(text for text, _ in seen)
    assert set(counts) == set(TEXTS)  # 54 of the larger class in 72 turns
    assert {counts[text] for text, label in zip(TEXTS, LABELS, strict=True) if label == "odd"} == {
        4
    }


CONFIG = jaxgen.ModelConfig(
    vocab_size=32,
    context=8,
    layers=1,
    d_model=8,
    heads=2,
    topology="encoder",
    head="classes",
    classes=3,
)


def test_mixed_texts_are_the_mean_of_their_vectors_and_classes():
    params, key = jaxgen.init(CONFIG, jax.random.key(0)), jax.random.key(1)
    tokens_, marks = jax.random.randint(key, (2, 6), 4, 32), jnp.array([[1] * 6, [1] * 4 + [0] * 2])
    batch = {"tokens": tokens_, "segments": marks, "targets": jnp.array([[0], [2]])}
    mixup = jax.jit(lambda p: mixup_loss(p, CONFIG, batch, key, alpha=0.5))(params)
    drawn = jax.random.beta(jax.random.fold_in(key, 1), 0.5, 0.5, (2, 1))
    share, off = jnp.maximum(drawn, 1 - drawn)[..., None], CONFIG.replace(dropout=0.0)
    vectors = params["embed"]["tokens"][tokens_] * marks[..., None]
    mixed = share * vectors + (1 - share) * vectors[::-1]
    ones = jnp.ones_like(marks)
    logits = jax.jit(lambda x: jaxgen.apply(params, off, inputs_embeds=x, segments=ones).logits)(
        mixed
    )
    logp = jax.nn.log_softmax(logits)
    own, other = -logp[jnp.arange(2), jnp.array([0, 2])], -logp[jnp.arange(2), jnp.array([2, 0])]
    wanted = share[:, 0, 0] * own + (1 - share[:, 0, 0]) * other
    np.testing.assert_allclose(mixup.nll, wanted, rtol=1e-5)
    one = {name: x[:1] for name, x in batch.items()}  # mixed with itself
    alone = jax.jit(lambda p: mixup_loss(p, CONFIG, one, key, alpha=0.5))(params)
    clean = jax.jit(lambda p: jaxgen.causal_loss(p, CONFIG, one))(params)
    np.testing.assert_allclose(alone.total, clean.total, rtol=1e-5)


def test_every_setting_does_something(shard, pairs, tmp_path):
    def batch(**given):
        own = AugmentSettings(**{"kind": "replace", "similarity": -1.0} | given)
        stream = batches_of(shard, own)
        ids = next(stream)["tokens"]
        stream.close()
        return ids

    vectors = tmp_path / "vectors.txt"
    vectors.write_text("red 1 0\nblue 1 0.1\nboat 0 1\ncar 0.1 1\n")
    plain = batch()
    for given in ({"rate": 0.9}, {"chance": 1.0}, {"similarity": 0.99}, {"file": vectors}):
        assert (batch(**given) != plain).any(), given
    elsewhere = {"kind", "alpha"}
    assert {f.name for f in fields(AugmentSettings)} == elsewhere | {
        "rate",
        "chance",
        "similarity",
        "file",
    }


@pytest.mark.parametrize(
    ("augment", "more", "part"),
    [
        (
            [{"kind": "swap"}],
            {},
            "kind=swap is for objective.name=classes, whose labels stay right, not causal",
        ),
        (
            [{"kind": "swap", "alpha": 1}],
            {},
            r"augment\[0\]: alpha=1.0 has no effect with kind=swap",
        ),
        ([{"kind": "variants"}], {}, "kind=variants needs file: what `jaxgen augment"),
        (
            [{"kind": "pieces"}],
            {"classes": True},
            "kind=pieces does not go with tokenizer.kind=bytes",
        ),
        (
            [{"kind": "mixup"}] * 2,
            {"classes": True},
            "kind=mixup does not go with another: give one",
        ),
        (
            [{"kind": "mixup"}],
            {"classes": True, "train": {"adversarial": {"kind": "fgm"}}},
            "kind=mixup does not go with train.adversarial",
        ),
        (
            [{"kind": "delete"}],
            {"classes": True, "train": {"privacy": {"epsilon": 1, "delta": 1e-6}}},
            "kind=delete does not go with train.privacy",
        ),
    ],
)
def test_changes_that_a_run_cannot_have_are_refused_by_name(augment, more, part):
    given = {"tokenizer": {"kind": "bytes"}, "data": {"augment": augment}, **more}
    if given.pop("classes", False):
        given |= {"objective": {"name": "classes"}, "model": {"head": "classes", "classes": 2}}
    with pytest.raises(ConfigError, match=part):
        build_settings(given)
