"""A plan's parameters and optimizer are the run's own; what cannot work is refused or repaired."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import run
from jaxgen.cli import app, paths, start
from jaxgen.errors import BusyError, ConfigError
from jaxgen.models import api
from jaxgen.nn.unroll import UNROLL_LIMITS
from jaxgen.plan import compilers, gpu, report, tpu
from jaxgen.profile import chips
from jaxgen.run import forecast, inputs
from jaxgen.run.settings import build_settings
from jaxgen.train import optimizer
from jaxgen.train import state as states

TINY = {
    "model": {"vocab_size": 64, "context": 16, "layers": 2, "d_model": 16, "heads": 4},
    "train": {"batch": 8, "warmup": 1},
    "mesh": {"data": 1},
}


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """This process has found its devices already, and keeps no programs."""
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    monkeypatch.setattr(compilers, "use_no_device", lambda: None)


def test_parameters_and_optimizer_are_those_of_a_real_state():
    settings = build_settings(TINY)
    plan = forecast.plan_memory(settings, chips.CHIPS["v5p"], 1)
    rule = optimizer.make(settings.train, api.axes(settings.model))
    params = jax.jit(jaxgen.init, static_argnums=0)(settings.model, jax.random.key(0))
    state = states.train_state(params, rule, jax.random.key(0))
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert plan.memory["parameters"] == size(state.params)
    assert plan.memory["optimizer"] == size(state.optimizer)


@pytest.mark.parametrize(
    ("preset", "billions"), [("llama-8b", 8.03), ("llama-70b", 70.55), ("gpt3-175b", 174.6)]
)
def test_published_models_have_their_published_size(preset, billions):
    shapes = api.abstract(jaxgen.preset(preset))
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)


def test_fsdp_divides_what_is_held_and_adds_what_is_sent():
    alone = forecast.plan_memory(build_settings(TINY), chips.CHIPS["v5p"], 1)
    spread = forecast.plan_memory(build_settings(TINY | {"mesh": "fsdp:4"}), chips.CHIPS["v5p"], 4)
    assert sum(alone.traffic.values()) == 0 < sum(spread.traffic.values())
    ratio = alone.memory["optimizer"] / spread.memory["optimizer"]
    assert 3.4 < ratio <= 4  # vectors are kept whole


def test_layers_in_line_on_a_processor_keep_more(monkeypatch):
    def activations(chip=chips.CHIPS["v5p"], **model):
        settings = build_settings(TINY | {"model": TINY["model"] | model})
        return forecast.plan_memory(settings, chip, 1).memory["activations"]

    processor = replace(chips.CHIPS["v5p"], platform="cpu")
    looped = activations(processor)
    assert looped == activations(processor, unroll=1) and activations() == activations(unroll=2)
    assert activations(processor, unroll=2) == forecast.KEPT_UNROLLED * looped
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 2))
    assert activations(processor) == forecast.KEPT_UNROLLED * looped
    assert activations(processor, unroll=1) == looped and activations() == activations(unroll=2)
    again = activations(processor, remat="full", unroll=1)
    assert activations(processor, remat="full") == again < looped
    assert activations(processor, layers=1) == looped / 2  # neither a loop nor a line
    two = [
        forecast.plan_memory(
            build_settings(TINY | {"mesh": "data:2", "model": model}), processor, 2
        )
        for model in (TINY["model"], TINY["model"] | {"unroll": 1})
    ]
    assert two[0].memory == two[1].memory  # a loop on several devices


def test_logits_are_planned_by_even_chunks():
    train = TINY["train"] | {"loss_chunk": 9}
    plans = [
        forecast.plan_memory(build_settings(TINY | {"train": train | more}), chips.CHIPS["v5p"], 1)
        for more in ({}, {"loss_chunk": 8})
    ]
    assert plans[0].memory["logits"] == plans[1].memory["logits"]  # two of 8 positions, of 16


def test_a_plan_that_does_not_fit_names_one_that_does(capsys):
    words = "plan llama_8b --topology v5e:16x16 --figures analytic model.remat=none train.batch=256"
    code = app.main(words.split())
    shown = capsys.readouterr().out
    assert code == 0 and "DOES NOT FIT" in shown and "nothing was compiled" in shown
    words = next(line for line in shown.splitlines() if line.startswith("nearest that fits"))
    assert "model.remat=" in words and "mesh=" not in words  # only what changes is said
    overrides = [word for word in words.split() if "=" in word]
    settings = run.read_settings(paths.config("llama_8b"), ["train.batch=256", *overrides])
    assert forecast.plan_memory(settings, *chips.parse("v5e:16x16")).fits


def test_large_models_on_a_pod_are_planned_without_memory_of_their_size():
    settings = build_settings(
        {"model": {"preset": "gpt3-175b", "vocab_size": 50304, "remat": "full"},
         "train": {"batch": 2048},
         "mesh": {"fsdp": 256, "tensor": 4}}
    )  # fmt: skip
    plan = forecast.plan_memory(settings, *chips.parse("v5p:8x8x16"))
    state = 12 * plan.parameters / 1024
    assert plan.memory["parameters"] + plan.memory["optimizer"] == pytest.approx(
        state, rel=0.06
    )  # vectors are whole
    assert plan.fits and plan.bound == "compute" and dict(report.rows(plan))["layout"]


@pytest.mark.parametrize(
    ("topology", "mesh", "share"),
    [
        ("v5e:4x4", "data:2,fsdp:8", 0),
        ("2xv5e:4x4", "data:2,fsdp:16", 1),
        ("2xv5e:4x4", "data:4,fsdp:8", 1 / 3),
        ("h200:8", "data:2,fsdp:4", 0),
        ("h200:16", "data:2,fsdp:8", 1),
    ],
)
def test_only_what_crosses_slices_or_machines_takes_the_network(topology, mesh, share):
    chip, count = chips.parse(topology)
    plan = forecast.plan_memory(
        build_settings(TINY | {"mesh": mesh, "train": {"batch": 64}}), chip, count
    )
    sent = share * sum(size for name, size in plan.traffic.items() if name.endswith("(data)"))
    assert plan.seconds.get("network", 0.0) * chip.network == pytest.approx(sent)
    total = plan.seconds["links"] * chip.links + sent
    assert total == pytest.approx(sum(plan.traffic.values()))


@pytest.mark.parametrize(
    ("topology", "part"),
    [
        ("v5q:4", "did you mean 'v5p'"),
        ("v5p", "has no shape; write it as v5p:4x4x4"),
        ("v5p:4x4", "2 dimensions, v5p has 3"),
        ("v5p:0x4x4", "has no shape"),
        ("v5e:32x16", "a pod of v5e has at most 256"),
        ("2xv5e:32x16", "a pod of v5e has at most 256"),
        ("0xv5e:4x4", "'0xv5e' is no chip"),
        ("2xh200:8", "write h200:16, machines of 8"),
    ],
)
def test_a_topology_is_refused_with_the_remedy(topology, part):
    with pytest.raises(ConfigError, match=part):
        chips.parse(topology)


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("--topology here --figures compiled", 2, "--figures=compiled is for chips that are not"),
        ("--topology v5p:4x4x4 --figures measured", 2, "give --topology here"),
        ("--topology here --steps 0", 2, "--steps=0 must be at least 1"),
    ],
)
def test_figures_that_cannot_be_had_are_refused_in_one_line(words, code, part, capsys):
    assert app.main(["plan", "llama_8b", *words.split()]) == code
    shown = capsys.readouterr().err
    assert part in shown and shown.count("\n") == 1


def test_a_config_is_planned_before_its_tokenizer_is_made(capsys):
    config = build_settings({"tokenizer": {"kind": "bpe", "vocab_size": 700}})
    assert inputs.sized(config).model.vocab_size == 700
    config = build_settings({"tokenizer": {"kind": "bytes"}, "objective": {"name": "masked"}} | {
        "model": {"topology": "encoder", "head": "mlm"}
    })  # fmt: skip
    tokenizer = inputs.make_tokenizer(config)
    assert inputs.sized(config).model.vocab_size == tokenizer.vocab_size + 1  # and the mask
    assert app.main(["plan", "quickstart", "--topology", "v5e:2x2"]) == 0
    assert "2.56 M parameters" in capsys.readouterr().out


def test_without_the_compiler_its_figures_are_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(tpu.util, "find_spec", lambda name: None)
    with pytest.raises(BusyError, match=r"pip install 'jaxgen\[tpu\]'"):
        tpu.devices("v5p:2x2x1")
    monkeypatch.setattr(gpu, "RELEASES", ())
    with pytest.raises(BusyError, match=r"pip install 'jaxgen\[cuda\]'"):
        gpu.devices("h200:8")


def test_attention_scores_count_where_no_kernel_attends():
    long = TINY | {"model": TINY["model"] | {"context": 256}}
    kept = forecast.plan_memory(build_settings(long), chips.CHIPS["v5p"], 1)
    dropping = long | {"model": long["model"] | {"dropout": 0.1}}
    dropped = forecast.plan_memory(build_settings(dropping), chips.CHIPS["v5p"], 1)
    rows, heads, layers = 8, 4, 2
    scores = 2 * 4 * rows * heads * 256**2
    assert dropped.total - kept.total == scores * (layers + 1)
