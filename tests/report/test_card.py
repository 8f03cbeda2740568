"""`jaxgen card`: measured values with their files, and what was not reviewed, in one Markdown."""

import json

import pytest
import yaml

from jaxgen.cli.app import main
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.report.card import CHECKLIST, make_card

CONFIG = """
model: {vocab_size: 259, context: 24, layers: 1, d_model: 8, heads: 2}
tokenizer: {kind: bytes}
data: {files: [corpus.txt], valid_fraction: 0.2}
train: {steps: 20, batch: 2}
"""
LINES = [
    {"step": 10, "kind": "train", "seconds": 1.5, "loss": 2.5},
    {"step": 10, "kind": "valid", "seconds": 1.6, "loss": 2.25, "perplexity": 9.5, "tokens": 99.0},
    {"step": 20, "kind": "valid", "seconds": 3600.0, "loss": 2.75, "perplexity": None},
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


def test_a_card_says_what_the_files_say_and_names_them(run):
    bleu = {"value": 12.5, "low": 11.0, "high": 14.0}
    (run / "report").mkdir()
    report = {"generators": {"tiny": {"metrics": {"bleu": bleu, "ter": {"value": None}}}}}
    (run / "report/report.json").write_text(json.dumps(report))
    card = make_card(run, licence="apache-2.0", reviewed={"bias": "Ann:\n0.1 | 0.2"})
    assert card.startswith('---\nlicense: "apache-2.0"\nlibrary_name: jaxgen\n')
    for line in (
        "| validation, best: step 10 | loss 2.25, perplexity 9.5 | metrics.jsonl |",
        "| validation, last: step 20 | loss 2.75 | metrics.jsonl |",
        "| BLEU | 12.5 [11, 14] | report/report.json |",
        "| steps | 20 of 20 |",
        "| time | 1.00 h on ? x unknown |",
        "| licence of the text | not stated |",
        "| digest | unknown |",
        "- [x] **bias**: scores were compared between groups of people. Ann: 0.1 \\| 0.2",
    ):
        assert line in card, line
    assert card.count("Not reviewed.") == len(CHECKLIST) - 1 and "TER" not in card


def test_a_run_without_figures_says_so(run):
    (run / "metrics.jsonl").unlink()
    card = make_card(run)
    assert "| none | train, or run `jaxgen report` |  |" in card and "license:" not in card
    assert "| steps | 0 of 20 |" in card


def test_the_verb_writes_its_own_file_and_no_other(run, capsys):
    words = ["card", str(run), "--reviewed", "energy=none measured"]
    assert main(words) == 0 and main(words) == 0
    assert "[x] **energy**" in (run / "README.md").read_text()
    (run / "README.md").write_text("mine")
    assert main(words) == 2 and (run / "README.md").read_text() == "mine"
    assert main([*words[:2], "--reviewed", "energy", "--out", str(run / "c.md")]) == 2
    assert main([*words, "--reviewed", "energy=twice", "--out", str(run / "c.md")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "was not written by jaxgen card" in errors[0]
    assert "energy is given twice" in errors[2] and not (run / "c.md").exists()
    options = ["--license", "mit", "--data-license", "cc0", "--out", str(run / "c.md")]
    assert main(["card", str(run), *options]) == 0
    card = (run / "c.md").read_text()
    assert 'license: "mit"' in card and "| licence of the text | cc0 |" in card


def test_what_is_no_item_or_no_run_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"reviewed=bais.*'bias'"):
        make_card(run, reviewed={"bais": "x"})
    with pytest.raises(ConfigError, match="says nothing"):
        make_card(run, reviewed={"bias": " "})
    with pytest.raises(ConfigError, match="licence is empty"):
        make_card(run, licence=" ")
    with pytest.raises(ConfigError, match="no run"):
        make_card(tmp_path)
    (run / "env.json").write_text('{"digests": {')
    with pytest.raises(CheckpointError, match=r"env\.json is no record of a run"):
        make_card(run)
    (run / "env.json").unlink()
    (run / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="without the run that made it"):
        make_card(run)


@pytest.mark.parametrize(
    ("lines", "parts", "absent"),
    [
        ("", ("pipeline_tag: text-generation", "not trained to follow", "20.0% of it"), "## Priv"),
        (
            "{model: {topology: encoder_decoder}, objective: {name: pairs}}",
            ("pipeline_tag: text2text-generation",),
            "fill-m",
        ),
        (
            "data: {valid_files: [held.txt], valid_fraction: null}",
            ("| held out | held.txt |",),
            "%",
        ),
    ],
)
def test_a_card_follows_the_settings(run, lines, parts, absent):
    config = yaml.safe_load(CONFIG)
    for section, fields in (yaml.safe_load(lines) or {}).items():
        config[section] = config.get(section, {}) | fields
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "env.json").write_text(json.dumps({"digests": {"text": "abc123"}}))
    card = make_card(run)
    assert all(part in card for part in (*parts, "| digest | abc123 |")) and absent not in card
