"""`jaxgen init` writes, for each task, a config that trains as it is."""

import json
import typing

import pytest

from jaxgen import run, settings, settings_yaml
from jaxgen.cli import app, init, start

FAST = ["train.steps=1", "model.layers=1", "sample.max_new_tokens=2", "train.batch=4"]
TASKS = typing.get_args(init.Task)


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)

    def call(*words):
        code = app.main([str(word) for word in words])
        shown = capfd.readouterr()
        return code, shown.out + shown.err

    return call


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("text", "fine-tune")])
def test_a_config_trains_as_it_is_on_its_sample_and_the_hint_names_the_verb(here, tmp_path, task):
    code, said = here("init", task)
    assert code == 0 and "wrote my.jsonl" in said and "`jaxgen train my.yaml`" in said, said
    text = (tmp_path / "my.yaml").read_text()
    record = json.loads(
        next(row for row in text.splitlines() if "A record:" in row).split(": ", 1)[1]
    )
    assert record == json.loads((tmp_path / "my.jsonl").read_text().splitlines()[0])
    code, said = here("train", "my.yaml", *FAST)
    verb = {"pairs": "translate", "classes": "classify"}.get(task, "chat")
    assert code == 0 and f"try `jaxgen {verb} runs/my`" in said, said
    assert f"jaxgen {verb} runs/my" in text


def test_text_and_fine_tuning_name_your_files_and_train_as_they_are(here, tmp_path):
    (tmp_path / "a.md").write_text("the cat sat on the mat, said the old man. " * 40)
    assert here("init", "text", "a.md")[0] == 0
    code, said = here("train", "my.yaml", *FAST)
    assert code == 0 and "try `jaxgen generate runs/my`" in said, said
    code, said = here("init", "fine-tune", "a.md", "--model", "runs/my", "--out", "more.yaml")
    assert code == 0, said
    fast = [word for word in FAST if "layers" not in word]
    code, said = here("train", "more.yaml", "model.context=64", *fast)
    assert code == 0 and "weights of" in said, said


@pytest.mark.parametrize("task", TASKS)
def test_every_key_is_told_and_the_config_reads_as_it_was_meant(here, tmp_path, task):
    _, said = here("init", task, "--out", "x.yaml")
    mapping = settings_yaml.read_yaml(tmp_path / "x.yaml")
    text = (tmp_path / "x.yaml").read_text()
    told = {key: words for key, _, _, words in settings.fields_help(run.Settings)}
    for section, values in mapping.items():
        for key in values if isinstance(values, dict) else []:
            assert f"  # {told[f'{section}.{key}']}\n  {key}:" in text
    asks = {"chat": {"examples": 2}, "pairs": {"examples": 2}}  # what the text itself asks
    asks["preferences"] = {"prompts": ["What is 1 plus 1?"]}
    assert task not in asks or asks[task].items() <= mapping["sample"].items()
    if task == "fine-tune":
        assert mapping["init_from"] == "openai-community/gpt2"
        assert "openai-community/gpt2 is fetched when training begins" in said
    else:
        run.build_settings(mapping)


def test_nothing_is_written_over_and_contradictions_are_refused(here, tmp_path):
    (tmp_path / "my.jsonl").write_text("mine")
    code, said = here("init", "chat")
    assert code == 2 and "my.jsonl exists" in said and not (tmp_path / "my.yaml").exists()
    for words, part in (
        (["text", "--model", "x"], "--model x is for fine-tune"),
        (["text", "--out", "my.txt"], "must end with .yaml"),
        (["poem"], '"poem"'),
    ):
        code, said = here("init", *words)
        assert code == 2 and part in said and said.count("\n") == 1, said


def _write(path, record):
    rows = [
        {key: f"{value} {i}" if isinstance(value, str) and key != "label" else value
         for key, value in record.items()} | ({"label": "ab"[i % 2]} if "label" in record else {})
        for i in range(30)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
PROMPTS = {"prompt": "what is", "completion": "it is"}


def test_records_say_what_they_are_for_or_are_refused_at_once(here, tmp_path):
    _write(tmp_path / "qa.jsonl", PROMPTS)
    _write(tmp_path / "chat.jsonl", CHAT)
    _write(tmp_path / "odd.jsonl", {"a": 1, "b": "x"})
    (tmp_path / "t.txt").write_text("some text")
    for task, name, part in (
        ("pairs", "chat.jsonl", "`jaxgen init chat chat.jsonl`"),
        ("chat", "qa.jsonl", "has 'prompt', 'completion', but chat needs messages"),
        ("classes", "odd.jsonl", "has 'a', 'b', but classes needs text and label"),
        ("fine-tune", "odd.jsonl", "but fine-tune needs text"),
        ("pairs", "t.txt", "t.txt is plain text, but pairs needs records"),
    ):
        code, said = here("init", task, name)
        assert code == 2 and part in said and not (tmp_path / "my.yaml").exists(), said
    for name, task, sides in (("qa", "pairs", ["prompt", "completion"]), ("chat", "chat", None)):
        code, said = here("init", "fine-tune", f"{name}.jsonl", "--out", f"{name}.yaml")
        mapping = settings_yaml.read_yaml(tmp_path / f"{name}.yaml")
        assert code == 0 and mapping["objective"]["name"] == task, said
        assert (
            mapping["data"].get("sides") == sides
            and mapping["init_from"] == "openai-community/gpt2"
        )
    code, said = here("init", "pairs", "qa.jsonl", "train.steps=7", "data.on_bad_record=skip")
    mapping = settings_yaml.read_yaml(tmp_path / "my.yaml")
    assert code == 0 and mapping["train"]["steps"] == 7, said
    assert mapping["data"]["on_bad_record"] == "skip"


def test_chats_go_on_with_a_run_without_a_template_and_a_context_within_its_own(here, tmp_path):
    (tmp_path / "a.md").write_text("the cat sat on the mat, said the old man. " * 40)
    pieces = ["tokenizer.kind=bpe", "tokenizer.vocab_size=280", "model.context=32"]
    assert here("train", "a.md", *FAST, *pieces)[0] == 0
    _write(tmp_path / "chat.jsonl", CHAT)
    code, said = here("init", "chat", "chat.jsonl", "--model", "runs/a")
    mapping = settings_yaml.read_yaml(tmp_path / "my.yaml")
    assert code == 0 and mapping["model"]["context"] == 32, said
    assert mapping["train"]["steps"] == 10 * mapping["train"]["validate_every"]
    fast = [word for word in FAST if "layers" not in word]
    code, said = here("train", "my.yaml", "model.context=48", *fast)
    assert code == 0 and "has no chat template, so chats are laid by a plain one" in said, said
    assert "model.context=48 here, 32 there" in said, said
    code, said = here("train", "a.md", "init_from=runs/a", "--out", "runs/b", "--print-config")
    assert code == 0 and "context: 32" in said, said
