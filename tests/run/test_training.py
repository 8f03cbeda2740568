"""What a run hands to the loop, and says before it begins."""

import jax
import pytest

from jaxgen.errors import ConfigError
from jaxgen.pretrained import model
from jaxgen.run import job, training
from jaxgen.train import loop, partitioner


@pytest.mark.parametrize("small", [0, 2**20])
def test_a_run_says_the_compilers_options_and_waits_for_steps_on_a_cpu(
    small, config, here, monkeypatch, tmp_path
):
    handed = []

    def fit(state, batches, step, settings, callbacks, *_, **__):
        handed.append(callbacks)
        raise ConfigError("enough seen")

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(loop, "SMALL", small)
    code, said = here("train", config, "--out", tmp_path / "run")
    assert code == 2 and "enough seen" in said
    assert handed[0].dispatch_ahead == (small > 0 or jax.default_backend() != "cpu")
    for name in partitioner.compile_options_for("jit", None):
        assert f"compiler option {name}=true" in (tmp_path / "run" / "log.txt").read_text()
        assert "compiler option" not in said


TINY = """
model: {context: 16, layers: 1, d_model: 8, heads: 2}
tokenizer: {kind: bytes}
data: {files: [FILES], valid_fraction: 0.0, test_fraction: 0.0}
train: {steps: 3, batch: 4, warmup: 100, schedule: constant, log_every: 1}
sample: {prompts: [the], max_new_tokens: 2}
"""


@pytest.fixture
def tiny(corpus, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("FILES", str(corpus)))
    return path


def steps_of(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_a_run_without_validation_text_finishes_is_saved_and_goes_on_to_more_steps(
    tiny, here, tmp_path
):
    folder = tmp_path / "run [1]"
    code, said = here("train", tiny, "--out", folder)
    assert code == 0 and said.count("no validation:") == 1, said
    assert "train.warmup=100 is longer than the run; it is cut to train.steps=3" in said
    assert steps_of(folder) == [3] and (folder / "samples" / "3.txt").exists()
    code, said = here("train", folder, "train.steps=5", "train.warmup=0")
    assert code == 0 and "from step 3 on: train.steps=5 (was 3)" in said, said
    assert "the learning rate is now 0.001, as constant over 5 steps has it" in said
    assert steps_of(folder) == [3, 5]
    code, said = here("eval", folder)
    assert code == 7 and "keeps no valid text" in said and "another --split" in said, said
    # The command that goes on is named where there is one, and else the one that does not differ.
    code, said = here("train", tiny, "--out", folder)
    assert code == 2 and f"`jaxgen train {folder}` to go on" in said, said


def test_what_a_failing_validation_or_sample_interrupts_is_saved_before(
    tiny, here, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise ConfigError("planted")

    monkeypatch.setattr(job, "validate", fail)
    words = ("data.valid_fraction=0.3", "train.validate_every=2")
    code, said = here("train", tiny, "--out", tmp_path / "run", *words)
    assert code == 2 and "planted" in said, said
    assert steps_of(tmp_path / "run") == [2]


def test_the_best_validation_is_kept_and_named_wherever_it_falls(tiny, here, tmp_path, monkeypatch):
    losses = iter((3.0, 1.0, 2.0))
    monkeypatch.setattr(job, "validate", lambda *_, **__: {"loss": next(losses)})
    folder = tmp_path / "run"
    words = ("data.valid_fraction=0.3", "train.validate_every=1", "checkpoint.keep_last=1")
    code, said = here("train", tiny, "--out", folder, *words, "checkpoint.every=100")
    assert code == 0, said
    assert steps_of(folder) == [2, 3]
    step_folder = folder / "checkpoints" / "00000002"
    for path, step, number in (
        (folder, "best", 2), (folder, "last", 3), (folder, None, 3), (folder, 2, 2),
        (step_folder, None, 2), (step_folder, 2, 2),
    ):  # fmt: skip
        assert model.load_step(path, step)[2] == number
    with pytest.raises(ConfigError, match="is step 2, but step=3 is asked for"):
        model.load(step_folder, step=3)
    for words in ((folder, "--step", "best"), (step_folder,)):
        code, said = here("score", *words, "the text")
        assert code == 0, said
    assert here("score", step_folder, "--step", "3", "the text")[0] == 2
    code, said = here("score", folder, "--step", "newest", "the text")
    assert code == 2 and "--step newest is no checkpoint" in said, said


def test_validation_text_without_a_token_to_predict_is_found_before_the_first_step(
    tiny, here, tmp_path
):
    (tmp_path / "valid.jsonl").write_text('{"text": ""}\n')
    valid = f"data.valid_files=[{tmp_path}/valid.jsonl]"
    code, said = here("train", tiny, "--out", tmp_path / "run", valid, "data.valid_fraction=null")
    assert code == 7 and "hold no text" in said and not (tmp_path / "run").exists(), said


def test_a_run_without_a_step_is_begun_anew_and_force_does_so_with_steps(
    tiny, here, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def fail(*_, **__):
        raise ConfigError("planted")

    with monkeypatch.context() as plant:
        plant.setattr(training, "fit", fail)
        assert here("train", tiny, "--out", folder)[0] == 2
    assert (folder / "config.yaml").exists() and not (folder / "checkpoints").exists()
    code, said = here("generate", folder, "--prompt", "a")
    assert code == 4 and f"`jaxgen train {folder}` trains it" in said, said
    (folder / "mine.txt").write_text("notes")
    code, said = here("train", tiny, "--out", folder, "model.layers=2", "train.steps=2")
    assert code == 0 and "is begun anew; removed config.yaml, tokenizer" in said, said
    assert steps_of(folder) == [2]
    code, said = here("train", tiny, "--out", folder, "train.steps=4")
    assert code == 2 and "--force to begin it anew" in said and steps_of(folder) == [2], said
    code, said = here(
        "train", tiny, "--out", folder, "train.steps=4", "checkpoint.every=2", "--force"
    )
    assert code == 0 and "checkpoints (steps 2)" in said, said
    assert steps_of(folder) == [2, 4] and (folder / "mine.txt").read_text() == "notes"

    code, said = here("train", folder, "--from", "2", "train.learning_rate=0.01")
    assert code == 2 and "holds steps after 2: 4; --force removes them" in said, said
    code, said = here("train", folder, "--from", "3", "--force")
    assert code == 2 and "--from 3: " in said and "it holds 2, 4" in said, said
    assert steps_of(folder) == [2, 4]
    words = ("--from", "2", "--force", "train.learning_rate=0.01", "train.log_every=2")
    code, said = here("train", folder, *words)
    assert code == 0 and "resuming at step 2" in said and "removed the later steps 4" in said, said
    assert "from step 2 on: train.learning_rate=0.01" in said and steps_of(folder) == [2, 4]

    code, said = here("train", folder)
    more = f"all 4 steps are made; `jaxgen train {folder} train.steps=8` goes on"
    assert code == 0 and more in said and steps_of(folder) == [2, 4], said


def test_what_a_killed_beginning_left_is_no_obstacle_and_another_folder_is_one(
    tiny, here, tmp_path
):
    folder = tmp_path / "run"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "crash-20260101-1.txt").write_text("a traceback")
    code, said = here("train", tiny, "--out", folder, "train.steps=1")
    assert code == 0 and steps_of(folder) == [1], said
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    code, said = here("train", tiny, "--out", tmp_path / "thesis", "--force")
    assert code == 2 and "is no run: it holds 'chapter.tex'" in said, said
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


def test_a_lone_run_in_one_of_several_connected_processes_is_refused(
    tiny, here, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    code, said = here("train", tiny, "--out", tmp_path / "run")
    assert code == 2 and "JAX already connects 4 processes" in said
    assert not (tmp_path / "run" / "checkpoints").exists()
