"""Preferences: records in TRL's words, their rows, their losses, and the reference that is kept."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, tokens
from jaxgen.data.preferences import preference_rows
from jaxgen.errors import ConfigError, DataError
from jaxgen.run import conversations, evaluation, training
from jaxgen.run.settings import build_settings
from jaxgen.tokens.settings import TokenizerSettings
from jaxgen.train.log_probs import completion_logps, mean_kl
from jaxgen.train.preferences import feedback_loss, pair_loss
from jaxgen.train.settings import PreferenceSettings

PAIR = {"prompt": "ask", "chosen": " yes", "rejected": " no"}
ASK = [{"role": "user", "content": "ask"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))


def settings_of(folder, rows, **more):
    folder.mkdir(exist_ok=True)
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fractions = {"valid_fraction": 0.0, "test_fraction": 0.0}
    return data.DataSettings(files=(str(path),), **fractions, **more)


def read(folder, record, form="preferences"):
    (document,) = data.documents(settings_of(folder, [record]), form=form)
    return json.loads(document.text)


def test_a_prompt_is_given_or_what_chosen_and_rejected_share(tmp_path):
    given = read(tmp_path, PAIR)
    assert given["sides"] == [["ask", " yes"], ["ask", " no"]]
    assert read(tmp_path, {"chosen": "ask yes", "rejected": "ask no"}) == given
    shared = read(tmp_path, {"prompt": "ask", "chosen": ASK + YES, "rejected": ASK + NO})
    assert shared["sides"] == [[ASK, YES], [ASK, NO]]
    assert shared == read(tmp_path, {"prompt": ASK, "chosen": YES, "rejected": NO})
    assert read(tmp_path, {**PAIR, "margin": 1.5})["numbers"] == [1.5]
    liked = {"prompt": "ask", "completion": " yes", "label": True}
    assert read(tmp_path, liked, "feedback")["numbers"] == [1.0]


@pytest.mark.parametrize(
    ("record", "part"),
    [({**PAIR, "rejected": " yes"}, "chosen and rejected are equal"),
     ({"prompt": "ask", "chosen": "a"}, "has no field 'rejected'"),
     ({"prompt": "ask", "rejected": "a"}, "has no field 'chosen'"),
     ({**PAIR, "chosen": " "}, "'chosen' is empty"),
     ({**PAIR, "prompt": 3}, "'prompt' is a number, neither text nor messages"),
     ({**PAIR, "chosen": 3}, "'chosen' is a number, neither text nor messages"),
     ({**PAIR, "chosen": YES}, "both texts, or both messages"),
     ({"chosen": "yes", "rejected": "no"}, "has no prompt, and chosen and rejected share none"),
     ({"chosen": "ask", "rejected": "ask no"}, "'chosen' says nothing after the prompt"),
     ({**PAIR, "margin": "big"}, "'margin' is 'big', not a finite number"),
     ({"prompt": ASK, "chosen": [{"role": "asistant", "content": "x"}], "rejected": NO},
      "role 'asistant'")],
)  # fmt: skip
def test_a_record_that_is_no_preference_is_named(tmp_path, record, part):
    with pytest.raises(DataError) as error:
        list(data.documents(settings_of(tmp_path, [PAIR, record]), form="preferences"))
    assert part in str(error.value) and "records.jsonl:2" in str(error.value)


@pytest.mark.parametrize(
    ("record", "part"),
    [({"prompt": "a", "completion": "b", "label": 1}, "'label' is a number; write true"),
     ({"prompt": "a", "completion": "b"}, "has no field 'label'"),
     ({"prompt": "a", "label": True}, "has no field 'completion'")],
)  # fmt: skip
def test_a_record_that_is_no_feedback_is_named(tmp_path, record, part):
    with pytest.raises(DataError) as error:
        list(data.documents(settings_of(tmp_path, [record]), form="feedback"))
    assert part in str(error.value) and "records.jsonl:1" in str(error.value)


def rows_of(folder, records, form="preferences", width=16, too_long="cut"):
    encoder = conversations.RecordEncoder(
        tokens.train(TokenizerSettings(kind="bytes"), ()), None, form
    )
    corpus = data.prepare(settings_of(folder, records), encoder, folder / "cache", form=form)
    return preference_rows(corpus.train, width=width, too_long=too_long, name=form)


def batch_of(rows, numbers):
    numbers = np.asarray(numbers)
    return rows.batch(numbers, np.zeros_like(numbers), np.zeros(len(numbers), np.uint64))


def judged(batch, row, side):
    return bytes(batch["targets"][row, side][batch["weights"][row, side] > 0][:-1].tolist())


def test_a_row_holds_both_texts_and_judges_what_follows_the_prompt(tmp_path):
    rows = rows_of(tmp_path, [PAIR, {**PAIR, "chosen": " aye", "margin": 0.25}])
    batch = batch_of(rows, [1, 0, -1])
    assert [judged(batch, row, side) for row in (0, 1) for side in (0, 1)] == [
        b" aye", b" no", b" yes", b" no"]  # fmt: skip
    assert bytes(batch["tokens"][0, 0, 1:4].tolist()) == b"ask"
    assert batch["margin"].tolist() == [0.25, 0, 0] and batch["record"].tolist() == [1, 0, -1]
    assert not batch["weights"][2].any() and batch["index"][2] == -1
    liked = [{"prompt": f"q{n}", "completion": f" {n}", "label": n > 1} for n in range(3)]
    batch = batch_of(rows_of(tmp_path / "f", liked, "feedback"), [2, 0])
    assert batch["label"].tolist() == [1, 0]
    assert (judged(batch, 0, 0), judged(batch, 0, 1)) == (b" 2", b" 1")
    assert bytes(batch["tokens"][1, 1, 1:3].tolist()) == b"q0" and judged(batch, 1, 1) == b" 2"


def test_a_record_that_is_too_long_is_cut_dropped_or_refused_and_that_is_said(tmp_path):
    records = [PAIR, {**PAIR, "chosen": " yes" * 4}, {**PAIR, "prompt": "a" * 20}]
    rows = rows_of(tmp_path, records)
    assert rows.notes() == [
        "1 of 3 records are longer than model.context=16 and lose ends",
        "1 of 3 records don't fit model.context=16: left out",
    ]
    assert rows_of(tmp_path, records, too_long="drop").count == 1
    with pytest.raises(DataError, match=r"document 5 of train, from .*too_long=refuse"):
        rows_of(tmp_path, records, too_long="refuse")


CONFIG = jaxgen.ModelConfig(
    vocab_size=260, context=16, layers=1, d_model=8, heads=2, positions="rope", init_std=0.5
)


def test_losses_forget_padding_and_the_order_of_rows_and_start_where_they_must(tmp_path):
    params = jaxgen.init(CONFIG, jax.random.key(0))
    rows = rows_of(tmp_path, [{**PAIR, "chosen": f" {n}"} for n in range(4)])
    ordered, padded = batch_of(rows, [0, 1, 2, 3]), batch_of(rows, [3, -1, 1, 0, 2])
    logps = completion_logps(params, CONFIG, ordered)
    for name in ("sigmoid", "aot", "orpo"):
        settings = PreferenceSettings(loss=name)
        losses = []
        for batch in (ordered, padded):
            known = np.where(batch["record"][:, None] < 0, 0, logps[batch["record"]])
            found = pair_loss(params, CONFIG, batch | {"reference": known}, settings=settings)
            losses.append(float(found.total) / float(found.weight))
            assert float(found.weight) == 4
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
        if name == "sigmoid":  # the model is its own reference
            np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
            assert abs(float(found.metrics["log_ratio"])) < 1e-6
    other = jaxgen.init(CONFIG, jax.random.key(1))
    found = mean_kl(params, other, CONFIG, padded, chunk=3)
    own, theirs = (
        jax.nn.log_softmax(
            jnp.stack(
                [
                    jaxgen.apply(
                        one, CONFIG, padded["tokens"][:, side],
                        segments=padded["segments"][:, side], positions=padded["positions"][:, side]
                    ).logits
                    for side in (0, 1)
                ],
                axis=1,
            )
        )
        for one in (params, other)
    )  # fmt: skip
    weights = padded["weights"]
    wanted = (jnp.sum(jnp.exp(own) * (own - theirs), -1) * weights).sum((1, 2))
    np.testing.assert_allclose(found, wanted / np.maximum(weights.sum((1, 2)), 1), atol=1e-5)
    assert found[0] > 0.05 and found[1] == 0  # the row of padding
    np.testing.assert_allclose(mean_kl(params, params, CONFIG, padded), 0, atol=1e-6)
    liked = [{"prompt": "q", "completion": f" {n}", "label": n > 1} for n in range(4)]
    rows = rows_of(tmp_path / "f", liked, "feedback")
    batch = batch_of(rows, [0, 1, 2, -1])
    reference = completion_logps(params, CONFIG, batch)
    settings = PreferenceSettings(loss="kto")
    found = feedback_loss(params, CONFIG, batch | {"reference": reference}, settings=settings)
    np.testing.assert_allclose(float(found.total) / float(found.weight), 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("sections", "part"),
    [({"preference": {"loss": "kto"}}, "is of single completions"),
     ({"preference": {"beta": 0.0}}, "beta=0.0 must be greater than 0"),
     ({"preference": {"loss": "exo_pair"}}, "needs label_smoothing above 0"),
     ({"preference": {"loss": "ipo", "label_smoothing": 0.1}}, "no effect with loss=ipo"),
     ({"preference": {"center": 0.1}}, "is of reward models"),
     ({"objective": {"name": "chat"}, "preference": {"beta": 0.2}}, "preference section has no"),
     ({"objective": {"name": "feedback"}, "preference": {"loss": "ipo"}}, "loss=ipo is of pairs"),
     ({"objective": {"name": "rewards"}}, "needs model.head=classes"),
     ({"objective": {"name": "rewards"}, "model": {"head": "classes", "classes": 2}},
      "needs model.classes=1"),
     ({"train": {"smoothing": 0.1}}, "have no effect with objective.name=preferences")],
)  # fmt: skip
def test_settings_that_no_preference_can_have_are_refused(sections, part):
    with pytest.raises(ConfigError) as error:
        build_settings({"objective": {"name": "preferences"}} | sections)
    assert part in str(error.value)


RECORDS = {
    "chat": lambda n: {"messages": [{"role": "user", "content": f"ask {n}"}, *YES]},
    "preferences": lambda n: {**PAIR, "prompt": f"ask {n}"},
    "rewards": lambda n: {**PAIR, "prompt": f"ask {n}", "margin": 0.1 * n},
    "feedback": lambda n: {"prompt": f"ask {n}", "completion": f" {n}", "label": n % 2 == 0},
}
SHOWN = {"chat": "perplexity", "preferences": "kl", "rewards": "accuracy", "feedback": "kl"}


def digests(run, step):
    text = (run / "checkpoints" / f"{step:08d}" / "manifest.json").read_text()
    return {name: row["sha256"] for name, row in json.loads(text)["arrays"].items()}


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", list(RECORDS))
def test_a_run_that_was_killed_ends_with_the_same_bits_and_is_evaluated(tmp_path, name):
    files = settings_of(tmp_path, [RECORDS[name](n) for n in range(20)]).files
    model = {"context": 24, "layers": 1, "d_model": 16, "heads": 2, "positions": "rope"}
    more = {"head": "classes", "classes": 1} if name == "rewards" else {}
    chat = {"kind": "bpe", "vocab_size": 275}
    given = {
        "model": model | more | {"dropout": 0.0 if name == "preferences" else 0.1},
        "train": {"steps": 3, "batch": 4, "warmup": 1, "validate_every": 3, "log_every": 1,
                  "accumulate": 2, "track": []},
        "tokenizer": chat if name == "chat" else {"kind": "bytes"}, "objective": {"name": name},
        "data": {"files": list(files), "valid_fraction": 0.2}, "checkpoint": {"every": 2},
    }  # fmt: skip
    run, cache = tmp_path / "run", tmp_path / "cache"
    training.train(build_settings(given), run, cache=cache)
    expected, lines = digests(run, 3), lines_of(run)
    valid = next(row for row in lines if row["kind"] == "valid")
    shown = dict(evaluation.evaluate(run, cache=cache))
    assert abs(float(shown["loss"].split()[0]) - valid["loss"]) < 1e-4 and SHOWN[name] in shown
    assert name == "chat" or float(shown["accuracy"]) == pytest.approx(valid["accuracy"], abs=1e-4)
    if name == "preferences":  # the model is its own reference at first
        np.testing.assert_allclose(lines[0]["loss"], np.log(2), rtol=1e-5)
        with np.load(run / "reference.npz") as old:
            arrays = {**old, "key": np.asarray("another"), "train": old["train"] + 1}
            known = old["train"]
        np.savez(run / "reference.npz", **arrays)  # of other weights or data: computed anew
        assert dict(evaluation.evaluate(run, cache=cache)) == shown
    shutil.rmtree(run / "checkpoints/00000003")  # as if it had been killed before it was saved
    training.resume(run, [], cache=cache)
    assert digests(run, 3) == expected
    assert [row["loss"] for row in lines_of(run)] == [row["loss"] for row in lines]
    if name == "preferences":
        assert "the reference is computed anew" in (run / "log.txt").read_text()
        with np.load(run / "reference.npz") as new:
            np.testing.assert_array_equal(new["train"], known)
