"""The harness asks our model and transformers' for the same figures of the same weights.

lm-eval brings half a hundred packages, so it has an environment of its own:

    pip install -e ".[test,lm-eval]" transformers torch && python -m pytest tests/harness
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import ConfigError, DataError

CONFIG = """
model: {context: 32, layers: 1, d_model: 16, heads: 2, norm: rms, positions: rope, feed: swiglu,
        biases: none}
tokenizer: {kind: bpe, vocab_size: 300}
data: {files: [corpus.txt], split: tail, valid_fraction: 0.2}
train: {steps: 150, batch: 8, warmup: 0, learning_rate: 0.01, validate_every: 150,
        validate_batches: 1}
"""
WORDS = "the cat sat on a mat and the dog lay under it while rain fell on every roof".split()
SHARED = "dataset_path: json\ntest_split: test\ndataset_kwargs: {data_files: {test: DATA}}\n"
TASKS = {
    "choice": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\n"
    "doc_to_choice: '{{choices}}'\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n",
    "short": "output_type: multiple_choice\ndoc_to_text: '{{long[:20]}}'\n"
    "doc_to_choice: '{{choices[1:]}}'\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{long}}'\n"
    "metric_list: [{metric: bits_per_byte}]\n",
    "written": "output_type: generate_until\ndoc_to_text: '{{long[:24]}}'\ndoc_to_target: ' x'\n"
    "generation_kwargs: {until: ['.', 'roof'], max_gen_toks: 9, do_sample: false}\n"
    "metric_list: [{metric: bleu}]\n",
    "cut": "output_type: generate_until\ndoc_to_text: '{{long}}'\ndoc_to_target: ' x'\n"
    "generation_kwargs: {until: [], max_gen_toks: 11, do_sample: false}\n"
    "metric_list: [{metric: bleu}]\n",
}


SERVER = "local-completions"
# The harness leaves a server one token less, to be generated after what is scored.
SERVED = {"choice": 32, "short": 32, "rolling": 32, "written": 32, "cut": 33}


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "jaxgen.harness", raising=False)
    with pytest.raises(ConfigError, match=r'pip install "jaxgen\[lm-eval\]"'):
        import jaxgen.harness  # noqa: F401


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each backend answered to each task's requests: task -> backend -> answers."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from huggingface_hub import constants
    from lm_eval.tasks import TaskManager

    import jaxgen.harness  # noqa: F401

    home, rng = tmp_path_factory.mktemp("harness"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as m:
        m.chdir(home)
        m.setenv("HF_HOME", str(home / "hf"))
        m.setattr(constants, "HF_HUB_OFFLINE", True)
        m.setenv("JAXGEN_CACHE", str(home / "cache"))
        m.setattr(start, "prepare_jax", lambda cache: None)
        lines = [" ".join(rng.choice(WORDS, 12)) + "." for _ in range(80)]
        Path("corpus.txt").write_text("\n".join(lines))
        Path("tiny.yaml").write_text(CONFIG)
        assert app.main(["train", "tiny.yaml", "--out", "run"]) == 0
        assert app.main(["convert", "run", "hf_folder", "--to", "hf"]) == 0
        rows = [
            {"text": line[: len(line) // 2], "choices": [line[len(line) // 2 :], " a mat", " it "],
             "long": " ".join(lines[i : i + 4])}
            for i, line in enumerate(lines[:6])
        ]  # fmt: skip
        rows[0]["text"] = ""
        Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        Path("tasks").mkdir()
        for name, task in TASKS.items():
            body = f"task: {name}\n{SHARED.replace('DATA', str(home / 'rows.jsonl'))}{task}"
            Path(f"tasks/{name}.yaml").write_text(body)
        manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
        scored = watch_scores(m)
        backends = {
            "jaxgen": {"path": "run"},
            "hf": {"pretrained": "hf_folder", "dtype": "float32", "device": "cpu"},
        }
        found = {name: {} for name in TASKS}
        with served("run") as address:
            backends[SERVER] = {
                "model": "run", "base_url": f"{address}/v1/completions", "add_bos_token": True,
                "tokenizer": "hf_folder", "tokenizer_backend": "huggingface", "max_retries": 1,
            }  # fmt: skip
            runs = [(backend, [*TASKS], {}) for backend in ("jaxgen", "hf")]
            for most in set(SERVED.values()):
                tasks = [name for name, length in SERVED.items() if length == most]
                runs.append((SERVER, tasks, {"max_length": most}))
            for backend, tasks, more in runs:
                said = lm_eval.simple_evaluate(
                    model=backend, model_args=backends[backend] | more, tasks=tasks,
                    task_manager=manager, batch_size=4, log_samples=True, bootstrap_iters=0,
                )  # fmt: skip
                for name in tasks:
                    found[name][backend] = [row["resps"] for row in said["samples"][name]]
        yield found | {"scored": scored}


def watch_scores(patch):
    """What a server is asked to score: (ids, where continuations begin, answers) of each batch."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    said, read = [], LocalCompletionsAPI.parse_logprobs

    def hear(outputs, **kwargs):
        rows = read(outputs, **kwargs)
        said.append((kwargs["tokens"], kwargs["ctxlens"], rows))
        return rows

    patch.setattr(LocalCompletionsAPI, "parse_logprobs", staticmethod(hear))
    return said


@contextmanager
def served(folder):
    """The address of `jaxgen serve` of a folder."""
    import socket
    import threading
    import time

    from jaxgen.serve import app, listen

    asgi = app({folder: jaxgen.open(folder)}, context=32, slots=4, warm=False)
    server = listen.listener(asgi, asgi.state.server.drain)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_server_gives_the_figures_of_the_library(answers):
    for a, b in zip(answers["short"]["jaxgen"], answers["short"][SERVER], strict=True):
        for (logp, greedy), (their_logp, their_greedy) in zip(flat(a), flat(b), strict=True):
            assert their_logp == pytest.approx(logp, abs=1e-4) and greedy == their_greedy
    for name in ("written", "cut"):
        assert answers[name][SERVER] == answers[name]["jaxgen"]


def test_windows_of_texts_longer_than_the_context_are_scored_by_the_server_as_by_the_library(
    answers,
):
    from jaxgen.harness import Harness

    windows = [row for batch in answers["scored"] for row in zip(*batch, strict=True)]
    ours = Harness("run")._loglikelihood_tokens(
        [(("", ""), list(ids[:begin]), list(ids[begin:])) for ids, begin, _ in windows]
    )
    for (logp, greedy), (_, _, (their_logp, their_greedy)) in zip(ours, windows, strict=True):
        assert their_logp == pytest.approx(logp, abs=1e-3) and greedy == their_greedy
    assert max(len(ids) for ids, _, _ in windows) == 31  # and one that is generated: the context
    assert sum(len(ids) == 31 and begin == 1 for ids, begin, _ in windows) >= 6  # rolling
    for a, b in zip(answers["rolling"]["jaxgen"], answers["rolling"][SERVER], strict=True):
        assert number(a) == pytest.approx(number(b), rel=0.1)  # windows of 32 and of 30 tokens


def test_log_likelihoods_equal_those_of_hf(answers):
    ours, theirs = answers["choice"]["jaxgen"], answers["choice"]["hf"]
    assert len(ours) == 6 and all(len(row) == 3 for row in ours)
    for a, b in zip(ours, theirs, strict=True):
        for (logp, greedy), (their_logp, their_greedy) in zip(flat(a), flat(b), strict=True):
            assert logp == pytest.approx(their_logp, abs=1e-3) and logp < -1
            assert greedy == their_greedy


def test_rolling_log_likelihoods_of_texts_longer_than_the_context_equal_those_of_hf(answers):
    ours, theirs = answers["rolling"]["jaxgen"], answers["rolling"]["hf"]
    for a, b in zip(ours, theirs, strict=True):
        assert number(a) == pytest.approx(number(b), rel=1e-5) and number(a) < -100


def test_texts_equal_those_of_hf_up_to_their_stop(answers):
    assert answers["written"]["jaxgen"] == answers["written"]["hf"]
    made = [row[0][0] for row in answers["written"]["jaxgen"]]
    assert any(made) and not any("roof" in text or "." in text for text in made)


def test_contexts_too_long_for_the_model_lose_the_tokens_that_hf_drops(answers):
    assert answers["cut"]["jaxgen"] == answers["cut"]["hf"]
    assert all(row[0][0] for row in answers["cut"]["jaxgen"])
    from jaxgen.harness import Harness

    ours, asked = Harness("run"), []
    ours.session = SimpleNamespace(
        config=ours.session.config, tokenizer=ours.session.tokenizer,
        complete=lambda prompts, settings: asked.extend(prompts) or ["", ""],
    )  # fmt: skip
    text = "the cat sat on a mat and the dog lay under it " * 4
    ours._complete([text, "it"], {"until": [], "max_gen_toks": 11})
    ids = ours.tok_encode(text)
    assert ids[0] == ours.prefix_token_id
    assert asked == [tuple(ids[-(32 - 11) :]), tuple(ours.tok_encode("it"))]


@pytest.mark.parametrize(("after", "part"), [([], "has 0 tokens"), ([5] * 33, "has 33 tokens")])
def test_continuations_of_which_not_all_can_be_scored_are_refused(answers, after, part):
    from jaxgen.harness import Harness

    with pytest.raises(DataError, match=part):
        Harness("run")._loglikelihood_tokens([(("the", " cat"), [5], after)])


def test_settings_that_have_no_meaning_here_are_refused(answers):
    from jaxgen.harness import Harness

    for wrong, part in (({"device": "cuda:1"}, "device=cuda:1"), ({"batch_size": "auto"}, "=auto")):
        with pytest.raises(ConfigError, match=part):
            Harness("run", **wrong)
    ours = Harness("run", batch_size="2", device="cuda:0")
    with pytest.raises(ConfigError, match="num_beams are not known here"):
        ours._complete(["the cat"], {"num_beams": 3, "max_gen_toks": 4})
    with pytest.raises(ConfigError, match="max_gen_toks=32 leaves no room"):
        ours._complete(["the cat"], {"max_gen_toks": 32})


def flat(row):
    return [(float(a), str(b) == "True") for ((a, b),) in row]


def number(row):
    while isinstance(row, (list, tuple)):
        row = row[0]
    return float(row)
