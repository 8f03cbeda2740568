"""An audit of a private run with canaries, from the command line to the page of a report."""

import json
from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.audit import extraction, make, page, shadows
from jaxgen.audit.make import AuditSettings
from jaxgen.cli import app
from jaxgen.config import ModelConfig
from jaxgen.data.canaries import CanarySettings, planted
from jaxgen.data.copies import index_copies
from jaxgen.errors import DataError
from jaxgen.run import privacy
from jaxgen.run.settings import build_settings
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.tokens.plain import Bytes

OPTIONS = ["--candidates", "40", "--members", "6", "--prefix", "4", "--length", "6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("audit")
    words = np.random.default_rng(0).integers(0, 40, 400)
    rows = [json.dumps({"text": " ".join(f"w{w}" for w in words[i : i + 8])}) for i in range(200)]
    (home / "text.jsonl").write_text("\n".join(rows))
    (home / "my.yaml").write_text(f"""
model: {{context: 32, layers: 1, d_model: 8, heads: 1}}
tokenizer: {{kind: bytes}}
data: {{files: [{home}/text.jsonl], split: tail, valid_fraction: 0.2, canaries: {{number: 24}}}}
train: {{steps: 2, batch: 8, log_every: 1, validate_every: 2, track: [],
  privacy: {{noise_multiplier: 4.0, delta: 1.0e-3, expected: 3.0, seed: 5}}}}
checkpoint: {{every: 2}}
""")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXGEN_CACHE", str(home / "cache"))
        # One secret for all, which is part of the program: so that of shadows is compiled already.
        patch.setattr(privacy.secrets, "randbits", lambda bits: 5)
        assert app.main(["train", str(home / "my.yaml"), "--out", str(home / "run")]) == 0
        assert app.main(["audit", str(home / "run"), "--shadows", "2", *OPTIONS]) == 0
        yield home / "run"


def test_an_audit_holds_every_attack_and_both_bounds(run):
    audit = json.loads((run / "audit" / page.JSON).read_text())
    inside = planted(CanarySettings(number=24))
    bits = audit["exposure"]["bits"]
    assert len(bits["planted"]) == audit["canaries"]["planted"] == inside.sum()
    assert len(bits["left_out"]) == (~inside).sum()
    assert audit["exposure"]["most"] == pytest.approx(np.log2(41))
    for kind in ("text", "canaries"):
        for method in ("loss", "lira"):
            values = audit["membership"][kind][method]
            assert 0 <= values["auc"]["low"] <= values["auc"]["value"] <= values["auc"]["high"] <= 1
    assert audit["extraction"]["training"]["prompts"] == 6 + inside.sum()
    assert audit["extraction"]["held_out"]["prompts"] == 6 + (~inside).sum()
    epsilon = audit["epsilon"]
    assert 0 <= epsilon["lower"] <= epsilon["upper"] < 3
    assert epsilon["delta"] == 1e-3
    assert 1.4075 < audit["exposure"]["promised"] < audit["exposure"]["most"]


def test_each_flag_reaches_the_audit(run, tmp_path, monkeypatch):
    given = {"candidates": 7, "members": 5, "shadows": 4, "prefix": 3, "length": 2, "batch": 9}
    given["seed"], asked = 8, []
    assert given.keys() == {field.name for field in fields(AuditSettings)}

    def make_audit(folder, settings, *, step, **_):
        asked.append((settings, step))
        return page.read_audit(run / "audit")

    monkeypatch.setattr(make, "make_audit", make_audit)
    words = [f"--{name}={value}" for name, value in given.items()]
    out = ["--step", "last", "--out", str(tmp_path / "out")]
    assert app.main(["audit", str(run), *words, *out]) == 0
    assert asked == [(AuditSettings(**given), "last")]
    assert (tmp_path / "out" / page.JSON).exists()


def test_shadows_are_trained_on_other_halves_as_the_run_was(run):
    texts = [(run / "audit" / f"shadow-{k}.jsonl").read_text().splitlines() for k in range(2)]
    one, other = map(set, texts)
    assert len(one ^ other) >= 12 + 24  # each piece and canary is in one of the two
    assert len(one & other) > 50
    inside = shadows.coins(8, 50, seed=1)
    assert (inside.sum(axis=0) == 4).all()
    assert 0 < inside[0].sum() < 50


def test_the_page_shows_it_and_the_report_reads_it(run):
    text = (run / "audit" / "audit.html").read_text()
    for words in ("Exposure of canaries", "LiRA", "Extraction", "at most", "at least", "<circle"):
        assert words in text
    audit = page.read_audit(run / "audit")
    assert any("exposure, planted" in name for name, _ in page.rows(audit))
    assert page.read_audit(run) is None


def test_what_is_not_asked_is_said(run):
    audit = page.read_audit(run / "audit")
    audit["extraction"]["held_out"] = {"prompts": 0}
    said = dict(page.rows(audit))["extraction, held out"]
    assert said.startswith("nothing is asked: no piece is as long as")
    assert said in "".join(page.section(audit))


def test_what_is_no_audit_is_named(tmp_path):
    (tmp_path / page.JSON).write_text('{"run": 1}')
    with pytest.raises(DataError, match="is no audit"):
        page.read_audit(tmp_path)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--shadows", "3"], "--shadows=3 must be even"),
        (["--prefix", "30", "--length", "6"], "--prefix=30 and --length=6 exceed model.context=32"),
        (["--members", "1"], "--members"),
    ],
)
def test_what_can_not_be_audited_is_refused_by_name(run, capsys, words, fault):
    assert app.main(["audit", str(run), *words]) == 2
    assert fault in capsys.readouterr().err


def test_copies_of_the_training_text_are_found_near_and_verbatim(monkeypatch):
    rows = [list(range(10, 22)), list(range(30, 42)), list(range(50, 62))]
    texts = [rows[0][4:], [*rows[1][4:9], 1, *rows[1][10:]], [1] * 8]
    config = ModelConfig(vocab_size=262, context=12, layers=1, d_model=8, heads=1)
    model = LoadedModel(config, {}, Bytes())
    monkeypatch.setattr(extraction, "generate", lambda *_, **more: jnp.resize(
        jnp.array(texts, jnp.int32), (32, 8)))  # fmt: skip
    found = extraction.extract(model, [*rows, [1, 2]], index_copies(list(map(np.array, rows))),
                               prefix=4, length=8)  # fmt: skip
    assert found["prompts"] == 3
    assert found["verbatim"] == pytest.approx(1 / 3)
    assert found["longest_copy"] == 8
    assert found["mean_copy"] == pytest.approx((8 + 5 + 0) / 3)
    assert found["near_copies"] == pytest.approx(1 / 3)
    assert [one["longest_copy"] for one in found["examples"]] == [8, 5, 0]


@pytest.mark.parametrize(
    ("canaries", "privacy", "why"),
    [
        ({"number": 0}, {}, "has no canaries"),
        ({"number": 24, "rate": 0.4}, {}, "no fair coin"),
        ({"number": 24, "repeats": 3}, {}, "not one unit"),
        ({"number": 24}, {"unit": "row"}, "not one unit"),
    ],
)
def test_a_bound_is_only_of_fair_coins_and_single_units(canaries, privacy, why):
    from jaxgen.audit.make import why_no_bound

    privacy = {"noise_multiplier": 1.0, "delta": 1e-3} | privacy
    settings = build_settings(
        {"data": {"files": ["x"], "canaries": canaries}, "train": {"privacy": privacy}}
    )
    assert why in why_no_bound(settings)
