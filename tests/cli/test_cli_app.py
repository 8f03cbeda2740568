"""The verbs: what they call, what they accept, and how they refuse."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgen as package
from jaxgen import run
from jaxgen.buckets import BucketPath
from jaxgen.cli import paths, train
from jaxgen.errors import nearest
from jaxgen.settings import fields_help

COMMAND = [sys.executable, "-m", "jaxgen"]
TINY = "model: {context: 16, layers: 1, d_model: 8, heads: 2}\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")


def begun(name):
    """Make the folder of a run."""
    folder = Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(TINY)


def refused(result, *parts):
    """One line on standard error, exit code 2, nothing on standard output."""
    assert result.code == 2, result
    assert result.out == ""
    assert re.fullmatch(r"jaxgen: error: [^\n]+\n", result.err), result.err
    for part in parts:
        assert part in result.err
    return True


def test_train_reads_the_config_and_trains_in_runs(jaxgen, calls, config, tmp_path):
    assert jaxgen("train", "tiny.yaml", "train.steps=7", "train.warmup=0").code == 0
    assert calls[0] == ("prepare_jax", tmp_path / "cache")
    name, (settings, folder), options = calls[1]
    assert (name, folder) == ("train", Path("runs/tiny"))
    assert settings.model.d_model == 8 and settings.train.steps == 7
    assert options.pop("stop") is not None and options.pop("group").count == 1
    assert options == {"cache": tmp_path / "cache", "trace": None, "force": False, "step": None}


def test_overrides_and_flags_may_be_mixed_and_flags_take_either_dash(jaxgen, calls, config):
    jaxgen("train", "tiny.yaml", "train.warmup=0", "--out", "here", "train.steps=3", "--profile")
    _, (settings, folder), options = calls[1]
    assert (settings.train.steps, folder) == (3, Path("here"))
    assert options["trace"] == Path("here/profile")
    dashed = jaxgen("train", "tiny.yaml", "--print-config")
    assert dashed.out == jaxgen("train", "tiny.yaml", "--print_config").out
    assert "d_model: 8" in dashed.out


def test_a_name_finds_the_config_in_configs_here_then_ours(jaxgen, calls, config, tmp_path):
    (tmp_path / "configs").mkdir()
    config.rename(tmp_path / "configs" / "debug.yaml")
    jaxgen("train", "debug")
    jaxgen("train", "shakespeare_char")
    (_, (here, _), _), (_, (ours, folder), _) = calls[1], calls[3]
    assert here.model.d_model == 8
    assert ours.model.d_model == 128 and folder == Path("runs/shakespeare_char")


def test_a_run_folder_goes_on_with_its_run(jaxgen, calls, tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text(TINY)
    assert jaxgen("train", "runs/a", "train.log_every=2").code == 0
    assert calls[1][:2] == ("resume", (Path("runs/a"), ("train.log_every=2",)))
    assert refused(jaxgen("train", "runs/a", "--out", "runs/b"), "goes on in its own folder")
    shown = jaxgen("train", "runs/a", "--print-config", "model.layers=5")
    assert "layers: 5" in shown.out and len(calls) == 2


def test_a_run_goes_on_by_its_name_unless_a_text_or_a_config_has_it(jaxgen, calls, chosen):
    for name in ("skip", "debug", "mine"):
        begun(name)
    touch("mine")
    assert jaxgen("train", "skip", "train.steps=9").code == 0
    assert calls[-1][:2] == ("resume", (Path("runs/skip"), ("train.steps=9",)))
    for word in ("debug", "mine"):
        assert jaxgen("train", word, "--out", "x").code == 0 and calls[-1][0] == "train"
    assert refused(jaxgen("train", "skip2"), "did you mean 'runs/skip'?")
    assert refused(jaxgen("doctor", "skip2"), "did you mean 'runs/skip'?")


def test_what_is_refused_is_never_suggested():
    assert nearest("skip", ["skip", "skip2"]) == " (did you mean 'skip2'?)"
    assert nearest("runs/skip", ["skip"], prefix="runs/") == ""


def test_nothing_is_said_of_training_before_an_override_was_read(jaxgen, calls):
    begun("skip")
    assert refused(jaxgen("train", "runs/skip", "train.stpes=3"), "did you mean 'train.steps'?")
    assert not calls


def test_keys_lists_every_key_with_default_and_meaning(jaxgen, calls):
    shown = jaxgen("train", "--keys")
    for key, _, default, text in fields_help(run.Settings):
        assert f"\n{key}={train._spell(default)}  (" in "\n" + shown.out
        assert text in shown.out
    assert not calls


def test_tokenize_and_eval_print_their_rows_as_a_table(jaxgen, calls, config, tmp_path):
    shown = jaxgen("tokenize", "tiny.yaml", "tokenizer.kind=bytes")
    assert shown.out == "tokenizer  bytes, 256 ids\ndigest     abc\n"
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shown = jaxgen("eval", "mine", "--split", "test")
    assert shown.out == "loss           1.5 nats per token\nbits per byte  2.1\n"
    assert calls[-1][1:] == (
        (Path("runs/mine"), ()),
        {"split": "test", "stride": None, "cache": tmp_path / "cache", "step": None}
        | {"adapter": (), "knn": None},
    )


def test_quickstart_passes_folder_and_overrides(jaxgen, monkeypatch):
    calls = []
    monkeypatch.setattr("jaxgen.report.quickstart.quickstart", lambda *a, **_: calls.append(a))
    jaxgen("quickstart")
    jaxgen("quickstart", "--out", "x", "train.steps=5")
    jaxgen("quickstart", "--out", "gs://bkt/x")
    assert calls == [
        (Path("runs/quickstart"), ()),
        (Path("x"), ("train.steps=5",)),
        (BucketPath("gs://bkt/x"), ()),
    ]


def test_being_told_to_stop_passes_its_exit_code_on(jaxgen, config, monkeypatch):
    def stop(*_, **__):
        raise SystemExit(75)

    monkeypatch.setitem(vars(run), "train", stop)
    with pytest.raises(SystemExit) as caught:
        jaxgen("train", "tiny.yaml")
    assert caught.value.code == 75


@pytest.fixture
def chosen(monkeypatch):
    """Sizes are chosen without a look at the machine; what was asked for is listed."""
    asked = []

    def text_settings(names, assignments=(), **more):
        asked.append((tuple(names), tuple(assignments), more))
        return run.build_settings({}), "sizes in one line"

    monkeypatch.setitem(vars(run), "text_settings", text_settings)
    return asked


def test_texts_are_trained_on_in_a_run_of_the_first_ones_name(jaxgen, calls, chosen, tmp_path):
    for name in ("a.md", "texts/b.TXT", "texts/c.py", "odd=name.txt"):
        touch(name)
    for words, names, folder in (
        (["a.md"], ("a.md",), "a"),
        (["texts"], ("texts",), "texts"),
        (["texts/*.py", "a.md"], ("texts/*.py", "a.md"), "texts"),
        (["odd=name.txt"], ("odd=name.txt",), "odd=name"),
        ([str(tmp_path / "a.md"), "--out", "x"], (str(tmp_path / "a.md"),), "x"),
    ):
        shown = jaxgen("train", *words, "train.steps=9", "--minutes", "2")
        assert shown.code == 0 and "sizes in one line" in shown.out, shown
        assert chosen[-1] == (names, ("train.steps=9",), {"minutes": 2.0})
        assert calls[-1][0] == "train" and calls[-1][1][1].name == folder
    assert calls[1][1][1] == Path("runs/a")


def test_text_that_has_a_run_goes_on_with_it_unless_forced(jaxgen, calls, chosen):
    touch("my.txt")
    begun("my")
    jaxgen("train", "my.txt", "train.steps=9")
    name, arguments, options = calls[-1]
    assert name == "resume" and not options["force"]
    assert arguments == (Path("runs/my"), ('data.files=["my.txt"]', "train.steps=9"))
    said = jaxgen("train", "my.txt", "--minutes", "3")
    assert calls[-1][0] == "resume" and "runs/my has begun and goes on" in said.err
    assert jaxgen("train", "my.txt", "--force").code == 0
    assert calls[-1][0] == "train" and calls[-1][2]["force"]
    jaxgen("train", "runs/my", "my.txt", "--from", "200", "--force")
    assert calls[-1][0] == "resume" and calls[-1][2]["step"] == 200


def test_files_take_the_place_of_a_configs_text(jaxgen, calls):
    touch("my.txt", "other.txt")
    for words, wanted in (
        (["shakespeare_char", "my.txt"], ("my.txt",)),
        (["quickstart", "data.files=my.txt"], ("my.txt",)),
        (["translate", "my.txt", "other.txt"], ("my.txt", "other.txt")),
    ):
        assert jaxgen("train", *words).code == 0
        settings = calls[-1][1][0]
        assert settings.data.files == wanted and settings.data.corpus is None
        assert settings.data.valid_files == ()


def test_text_goes_on_with_a_model(jaxgen, calls, monkeypatch):
    touch("my.txt")
    read = []
    monkeypatch.setitem(vars(run), "read_settings", lambda *words: read.append(words) or words)
    jaxgen("train", "my.txt", "init_from=models/gpt2")
    ((config, words),) = read
    assert config.stem == "finetune_gpt2" and calls[-1][1][1] == Path("runs/my")
    fits = "model.context=256"  # or what the model has
    assert words == ('data.files=["my.txt"]', fits, "init_from=models/gpt2")


MISTAKES = [
    (["trian"], "unknown verb 'trian'", "did you mean 'train'?"),
    (["--hepl"], "unknown option '--hepl'", "'--help'"),
    (["help"], "unknown verb 'help'", "train, init, generate, eval, convert"),
    (["tiny.yaml"], "did you mean `jaxgen train tiny.yaml`?"),
    (["train"], "CONFIG is missing"),
    (["train", ""], "'' is no config, run or text"),
    (["train", "train.steps=3"], "CONFIG comes first"),
    (["train", "tiny.yaml", "7"], "unexpected word '7'", "SECTION.KEY=VALUE"),
    (["train", "my.txt"], "my.txt: no such config, run or text"),
    (["train", "tiny.yaml", "--minutes", "3"], "--minutes=3", "set train.steps"),
    (["train", "no.txt", "--minutes", "3"], "no.txt: no such config, run or text"),
    (["train", "tiny.yaml", "--minutes", "0"], "--minutes=0 must be more than 0"),
    (["train", "tiny.yaml", "--minutes", "-1"], "--minutes=-1 must be more than 0"),
    (["train", "tiny.yaml", "--from", "x"], "--from x is no checkpoint"),
    (["train", "openai/gpt2"], "`jaxgen train my.txt init_from=openai/gpt2`"),
    (["eval", "bert-base-uncased"], "this command with google-bert/bert-base-uncased"),
    (["train", "tiny.yaml", "train.stpes=3"], "'train.stpes'", "did you mean 'train.steps'?"),
    (["train", "tiny.yaml", "train.steps="], "train.steps="),
    (["train", "tiny.yaml", "--train.steps=3"], "no dashes", "write train.steps=3"),
    (["train", "tiny.yaml", "--ouut", "x"], "unknown option '--ouut'", "'--out'"),
    (["train", "tiny.yaml", "--out"], "--out needs a value"),
    (["train", "tinny.yaml"], "tinny.yaml: no such config, run or text", "did you mean 'tiny'?"),
    (["train", "shakespear_char"], "did you mean 'shakespeare_char'?"),
    (["train", "left"], "folder without config.yaml"),
    (["train", "llama"], "is a model, not text", "init_from=llama"),
    (["train", "x" * 5000], "File name too long"),
    (["tokenize"], "CONFIG is missing"),
    (["eval"], "RUN is missing"),
    (["eval", "tiny.yaml"], "tiny.yaml is a file"),
    (["eval", "quickstrt"], "no such run"),
    (["eval", ".", "--split", "tset"], '"tset"', 'did you mean "test"?'),
    (["eval", ".", "more.txt"], "unexpected word 'more.txt'", "write data.files=more.txt"),
    (["tokenize", "tiny.yaml", "left/x"], "unexpected word 'left/x'", "SECTION.KEY=VALUE"),
    (["tokenize", "tiny.yaml", "tiny.yaml"], "write data.files=tiny.yaml"),
    (["quickstart", "fast"], "unexpected word 'fast'"),
    (["verify", "shards", "tiny", "--steps", "0"], "--steps=0 must be at least 1"),
    (["report", ".", "--prompt-tokens", "1"], "--prompt-tokens=1 must be at least 2"),
    (["score", ".", "a", "--batch", "1.5"], "--batch", "whole number, not '1.5'"),
    (["answer", ".", "a", "--context", "@none"], "--context @none: No such file"),
]


@pytest.mark.parametrize(("words", "parts"), [(m[0], m[1:]) for m in MISTAKES])
def test_a_mistake_is_one_line_with_its_remedy(jaxgen, calls, config, words, parts):
    for name in ("left/checkpoints", "llama/config.json"):
        touch(f"{name}/x" if name.startswith("left") else name)
    assert refused(jaxgen(*words), *parts)
    assert not calls


def test_a_mistyped_run_is_answered_with_the_nearest(jaxgen, tmp_path):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    assert refused(jaxgen("eval", "quickstrt"), "did you mean 'quickstart'?")


@pytest.mark.parametrize("verb", [[], ["quickstart"], ["train"], ["generate"], ["eval"]])
def test_help_teaches_with_examples(jaxgen, verb):
    shown = jaxgen(*verb, "--help")
    name = " ".join(["jaxgen", *verb])
    assert shown.code == 0 and shown.err == ""
    assert f"Usage: {name} " in shown.out
    assert len(re.findall(rf"(?m)^    .*{name}\b", shown.out)) >= 2, "two examples at least"
    assert "╭" not in shown.out and max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize("columns", ["60", "100"])
def test_paragraphs_of_the_help_fill_the_terminal(jaxgen, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    lines = jaxgen("chat", "--help").out.splitlines()
    paragraph = lines[4 if columns == "100" else 5 :]
    paragraph = [line.rstrip() for line in paragraph[: paragraph.index("")]]
    assert all(len(line) > int(columns) - 14 for line in paragraph[:-1]), paragraph
    assert "    jaxgen chat models/qwen" in lines


def test_no_words_show_the_help(jaxgen):
    assert jaxgen().out == jaxgen("--help").out


def test_version_is_that_of_the_package(jaxgen):
    assert jaxgen("--version").out == f"jaxgen {package.__version__}\n"


HELPS = {
    "parser": "import cyclopts, rich.console",
    "help": (
        "import sys\nfrom jaxgen.cli import app\ncode = app.main(['generate', '--help'])\n"
        "bad = {'jax', 'flax', 'numpy', 'grain', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else code)"
    ),
}


def cpu_seconds(code):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_quick_and_imports_neither_jax_nor_numpy():
    # Of processor time, and against a start that parses alone: both hold on a busy machine.
    least = {name: min(cpu_seconds(code) for _ in range(3)) for name, code in HELPS.items()}
    assert least["help"] < 4 * least["parser"], least


def test_the_module_runs_and_a_mistake_has_its_exit_code_and_no_traceback():
    done = subprocess.run([*COMMAND, "trian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("jaxgen: error: unknown verb 'trian'")
    assert done.stderr.count("\n") == 1


ENDS = """
import atexit, sys, threading, time
from jaxgen import __main__
from jaxgen.cli import app
class Model:
    def __del__(self): print("taken apart")
model = Model()
def work(): time.sleep({seconds}); print("worked")
threading.Thread(target=work, daemon={daemon}).start()
atexit.register(print, "bye")
app.main = lambda: 5
sys.exit(__main__.main())
"""


@pytest.mark.parametrize(
    ("daemon", "seconds", "printed"),
    [(True, 60, ["bye"]), (False, 0.5, ["worked", "bye", "taken apart"])],
)
def test_the_command_ends_at_once_unless_a_thread_still_works(daemon, seconds, printed):
    code = ENDS.format(daemon=daemon, seconds=seconds)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (5, printed), done.stderr


def test_help_into_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("closed", "words", "code"), [(">&-", "--help", 0), ("2>&-", "trian", 2)])
def test_closed_standard_streams_change_no_exit_code(closed, words, code):
    line = f'"{sys.executable}" -m jaxgen {words} {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_closed_standard_input_is_an_empty_prompt(tmp_path):
    line = f'"{sys.executable}" -m jaxgen generate . <&-'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "standard input is empty" in done.stderr


def test_a_lost_reader_does_not_change_the_exit_code_of_a_verb():
    program = (
        "import sys\nfrom jaxgen.report import quickstart\nfrom jaxgen.cli import app, start\n"
        "start.prepare_jax = lambda cache: None\n"
        "def stop(*_, **__):\n    print('saved')\n    raise SystemExit(75)\n"
        "quickstart.quickstart = stop\nsys.exit(app.main(['quickstart']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", program]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writer)
    assert done.returncode == 75
    assert done.stderr == "training the quickstart in runs/quickstart\n"


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "a"))
    assert paths.cache() == tmp_path / "a"
    monkeypatch.delenv("JAXGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert paths.cache() == tmp_path / "b" / "jaxgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert paths.cache() == tmp_path / "c" / ".cache" / "jaxgen"


PROGRAM = (
    "import sys, pathlib\nfrom jaxgen.cli import start\nstart.WORTH_KEEPING = 0.0\n"
    "start.prepare_jax(pathlib.Path(sys.argv[1]))\n"
    "import jax\nprint(jax.jit(lambda x: x * 3 + 1)(2.0))"
)


def compiled(cache):
    command = [sys.executable, "-c", PROGRAM, str(cache)]
    own = {n: value for n, value in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(command, env=own, capture_output=True, text=True)


def test_compiled_programs_are_kept_and_a_damaged_one_is_a_warning(tmp_path):
    assert compiled(tmp_path).stderr == ""
    kept = list((tmp_path / "xla").glob("*-cache"))
    assert kept
    for path in kept:
        path.write_bytes(b"damaged")
    done = compiled(tmp_path)
    assert done.stdout == "7.0\n" and done.returncode == 0
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith("jaxgen: warning: a program in") for line in lines)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    done = compiled(tmp_path / "file")
    assert done.stdout == "7.0\n" and done.returncode == 0
    assert re.fullmatch(r"jaxgen: warning: .*can't be written \(Not a.*\n", done.stderr)


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--steps", "train.steps=VALUE"),
        ("--lr=1e-4", "train.learning_rate=1e-4"),
        ("--batch_size=8", "train.batch=8"),
        ("--hidden-size", "model.d_model=VALUE"),
        ("--max-length", "model.context=VALUE"),
    ],
)
def test_options_of_other_programs_are_answered_with_the_key(jaxgen, config, option, answer):
    assert refused(jaxgen("train", "tiny.yaml", option), f"write {answer}")


def test_every_key_that_an_option_is_answered_with_is_one():
    from jaxgen.cli import mistakes

    known = {row[0] for row in fields_help(run.Settings)}
    assert set(mistakes.KEYS.values()) <= known


def test_plan_lists_the_chips(jaxgen, config):
    shown = jaxgen("plan")
    assert shown.code == 0 and "v5p:4x4x4" in shown.out and "NVIDIA H200: 141 GB" in shown.out
    assert refused(jaxgen("plan", "tiny.yaml"), "--topology is missing", "h200, or here")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_verbs_and_options(jaxgen, shell):
    shown = jaxgen("completion", shell)
    assert shown.code == 0 and "fill-mask" in shown.out and "print-config" in shown.out
