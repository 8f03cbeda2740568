"""Losses, metrics and gradients of preferences are those of TRL's trainers, on tiny models."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxgen
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.pretrained.hub_write import write_hub
from jaxgen.train import policy
from jaxgen.train.log_probs import TEXTS, completion_logps, token_nll
from jaxgen.train.preferences import feedback_loss, pair_loss, reward_loss
from jaxgen.train.settings import PreferenceSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

PROMPTS = [[1, 5, 9], [1, 7], [1, 3, 4, 8, 2], [1, 9, 9]]
CHOSEN = [[4, 5, 2], [6, 2], [8, 8, 8, 2], [3]]
REJECTED = [[7, 2], [9, 3, 4, 2], [2], [5, 5, 2]]
LABELS = [True, False, False, True]
WIDTH = 10
DPO = {
    "sigmoid": {}, "hinge": {}, "ipo": {}, "robust": {"label_smoothing": 0.2},
    "exo_pair": {"label_smoothing": 0.1}, "nca_pair": {}, "bco_pair": {}, "sppo_hard": {},
    "aot": {"label_smoothing": 0.1}, "aot_unpaired": {}, "apo_zero": {}, "apo_down": {},
    "sigmoid_norm": {},
}  # fmt: skip


class Alone:
    """An accelerator of one process."""

    device = "cpu"
    gather = gather_for_metrics = staticmethod(lambda x: x)
    reduce = staticmethod(lambda x, *args, **more: x)


def tiny(seed, **more):
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        initializer_range=0.3 if "num_labels" in more else 0.6, pad_token_id=0, **more,
    )  # fmt: skip
    torch.manual_seed(seed)
    kind = "LlamaForSequenceClassification" if "num_labels" in more else "LlamaForCausalLM"
    return getattr(transformers, kind)(config).train()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return (model, reference) of transformers, and (config, params, params) of ours."""
    pair, ours, config = (tiny(0), tiny(1)), [], None
    for number, model in enumerate(pair):
        home = tmp_path_factory.mktemp(str(number))
        model.save_pretrained(home)
        config, params = jaxgen.load(home)
        ours.append(params)
    for model in pair:
        trl.trainer.utils.add_fused_lm_head(
            model, outputs=("log_probs", "entropy", "mean_logits", "is_top1")
        )
    return *pair, config, *ours


def padded(texts, side):
    """Return (ids, attention mask, completion mask) of (prompt, completion) pairs, for TRL."""
    width = max(len(p) + len(c) for p, c in texts)
    rows = []
    for prompt, completion in texts:
        pads = [0] * (width - len(prompt) - len(completion))
        row = [prompt + completion, [1] * (len(prompt) + len(completion)),
               [0] * len(prompt) + [1] * len(completion)]  # fmt: skip
        rows.append([pads + part if side == "left" else part + pads for part in row])
    return [torch.tensor(part) for part in zip(*rows, strict=True)]


def laid(sides, side):
    """Return our batch of as many texts a row."""
    shape = (len(sides[0]), len(sides), WIDTH)
    names = ("tokens", "targets", "segments", "positions")
    batch = {name: np.zeros(shape, np.int32) for name in names}
    batch["weights"] = np.zeros(shape, np.float32)
    for column, texts in enumerate(sides):
        for row, (prompt, completion) in enumerate(texts):
            ids = np.array(prompt + completion)
            size = len(ids) - 1
            at = slice(WIDTH - size, WIDTH) if side == "left" else slice(0, size)
            batch["tokens"][row, column, at], batch["targets"][row, column, at] = ids[:-1], ids[1:]
            batch["segments"][row, column, at] = 1
            batch["positions"][row, column, at] = np.arange(size)
            batch["weights"][row, column, at] = np.arange(1, size + 1) >= len(prompt)
    return batch


def pairs(order):
    chosen = [(PROMPTS[i], CHOSEN[i]) for i in order]
    return chosen, [(PROMPTS[i], REJECTED[i]) for i in order]


def of_ours(loss, config, params, batch, settings, home):
    """Return (loss, metrics, gradients by transformers' names)."""

    def mean(params):
        result = loss(params, config, batch, settings=settings)
        return result.total / result.weight, result.metrics

    (value, metrics), grads = jax.value_and_grad(mean, has_aux=True)(params)
    home.mkdir()
    write_hub(home, config, grads, tokenizer=None, generation_config=GenerationConfig())
    return float(value), metrics, load_file(home / "model.safetensors")


def check_same(ours, theirs, model, metrics):
    """Assert that loss, gradients and metrics ({ours: theirs}) agree to 1e-5."""
    value, found, grads = ours
    model.zero_grad()
    theirs.backward()
    np.testing.assert_allclose(value, float(theirs), rtol=1e-5, atol=1e-5)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in wanted.values())
    compared = 0
    for name, grad in wanted.items():
        if name in grads:
            np.testing.assert_allclose(grads[name], grad.numpy(), atol=1e-5 * max(scale, 1))
            compared += 1
    assert compared > 10 and scale > 1e-4
    for name, other in metrics.items():
        np.testing.assert_allclose(float(found[name]), other, rtol=1e-4, atol=1e-5)


REWARDS = {"accuracy": "rewards/accuracies", "margin": "rewards/margins",
           "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected"}  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DPO)
def test_pairs_with_a_reference(models, tmp_path, name, side):
    model, reference, config, params, ref_params = models
    order = [0, 1, 2, 3] if side == "right" else [2, 0, 3, 1]
    chosen, rejected = pairs(order)
    batch = laid((chosen, rejected), side)
    batch["reference"] = completion_logps(ref_params, config, batch)
    settings = PreferenceSettings(loss=name, beta=0.3, **DPO[name])
    ids, attention, mask = padded(chosen + rejected, side)
    fake = SimpleNamespace(
        model=model, ref_model=reference, accelerator=Alone, ld_alpha=None, aux_loss_enabled=False,
        precompute_ref_logps=False, f_divergence_type="reverse_kl", loss_types=[name],
        loss_weights=[1.0], beta=0.3, label_smoothing=settings.label_smoothing,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None), use_weighting=False,
        _total_train_tokens=0, _tp_size=1, _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": attention, "completion_mask": mask}
    theirs = trl.DPOTrainer._compute_loss(fake, model, inputs, False)
    told = {ours: fake._metrics["train"][their][0] for ours, their in REWARDS.items()}
    ours = of_ours(pair_loss, config, params, batch, settings, tmp_path / "g")
    check_same(ours, theirs, model, told)


@pytest.mark.parametrize("name", ["orpo", "cpo", "simpo", "simpo with nll", "cpo smoothed"])
def test_pairs_without_a_reference(models, tmp_path, name):
    model, _, config, params, _ = models
    more = {"simpo": {"gamma": 0.7}, "simpo with nll": {"nll": 0.5},
            "cpo smoothed": {"label_smoothing": 0.2, "nll": 0.0}}.get(name, {})  # fmt: skip
    settings = PreferenceSettings(loss=name.split()[0], beta=0.3, **more)
    chosen, rejected = pairs(range(4))
    batch, inputs = laid((chosen, rejected), "right"), {}
    for key, texts in (("chosen", chosen), ("rejected", rejected)):
        ids, attention, mask = padded(texts, "right")
        inputs |= {f"{key}_input_ids": ids, f"{key}_attention_mask": attention,
                   f"{key}_labels": ids.masked_fill(mask == 0, -100)}  # fmt: skip
    if settings.loss == "orpo":
        from trl.experimental.orpo import ORPOTrainer as Trainer
    else:
        from trl.experimental.cpo import CPOTrainer as Trainer
    fake = SimpleNamespace(
        accelerator=Alone, beta=0.3, is_encoder_decoder=False, padding_value=0, pad_token_id=0,
        aux_loss_enabled=False, cpo_alpha=settings.nll_weight, alpha=0.0,
        loss_type="simpo" if settings.loss == "simpo" else "sigmoid",
        simpo_gamma=settings.gamma, label_smoothing=settings.label_smoothing,
    )  # fmt: skip
    static = ("concatenated_inputs", "get_batch_logps")
    for method in (*static, "concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(Trainer, method):
            bound = getattr(Trainer, method)
            setattr(fake, method, bound if method in static else bound.__get__(fake))
    theirs, told = Trainer.get_batch_loss_metrics(fake, model, inputs)
    told = {ours: told[their] for ours, their in REWARDS.items()}
    ours = of_ours(pair_loss, config, params, batch, settings, tmp_path / "g")
    check_same(ours, theirs, model, told)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_single_completions_liked_or_not(models, tmp_path, name):
    model, reference, config, params, ref_params = models
    settings = PreferenceSettings(loss=name, beta=0.3, desirable=1.5, undesirable=0.8)
    texts = [(p, c) for p, c in zip(PROMPTS, CHOSEN, strict=True)]
    mixed = [(p, CHOSEN[i - 1]) for i, p in enumerate(PROMPTS)]
    batch = laid((texts, mixed), "right")
    batch["reference"] = completion_logps(ref_params, config, batch)
    batch["label"] = np.array(LABELS, np.float32)
    names = ("input_ids", "attention_mask", "completion_mask")
    inputs = dict(zip(names, padded(texts, "right"), strict=True))
    other = zip(names, padded(mixed, "right"), strict=True)
    inputs |= {f"KL_{name}": array for name, array in other}
    inputs["label"] = torch.tensor(LABELS)
    fake = SimpleNamespace(
        model=model, ref_model=reference, accelerator=Alone, aux_loss_enabled=False, beta=0.3,
        precompute_ref_logps=False, calculate_KL=name == "kto", loss_type=name,
        desirable_weight=1.5, undesirable_weight=0.8, args=SimpleNamespace(
            gradient_checkpointing_kwargs=None), _total_train_tokens=0, _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    fake._compute_kl_logps = trl.KTOTrainer._compute_kl_logps.__get__(fake)
    theirs = trl.KTOTrainer._compute_loss(fake, model, inputs, False)
    told = {ours: fake._metrics["train"][their][0] for ours, their in REWARDS.items()
            if ours != "accuracy"}  # fmt: skip
    told["kl"] = fake._metrics["train"]["kl"][0]
    ours = of_ours(feedback_loss, config, params, batch, settings, tmp_path / "g")
    check_same(ours, theirs, model, told)


@pytest.mark.parametrize("side", ["left", "right"])
def test_reward_models(tmp_path, side):
    model = tiny(0, num_labels=1)
    model.save_pretrained(tmp_path / "m")
    config, params = jaxgen.load(tmp_path / "m")
    chosen, rejected = pairs([1, 3, 0, 2])
    # A reward is of the whole text: what is a target elsewhere is the last token here.
    batch = laid([[(p, [*c, 0]) for p, c in texts] for texts in (chosen, rejected)], side)
    batch["margin"] = np.array([0.5, 0.0, 1.0, -0.2], np.float32)
    ids, attention, _ = padded(chosen + rejected, side)
    inputs = {"input_ids": ids, "attention_mask": attention}
    inputs["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
    outputs = lambda margin, **kw: model(**kw)  # noqa: E731
    inputs["margin"] = torch.tensor(batch["margin"])
    fake = SimpleNamespace(
        model=model, accelerator=Alone, _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(center_rewards_coefficient=0.1),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    theirs = trl.RewardTrainer.compute_loss(fake, outputs, inputs)
    told = {name: fake._metrics["train"][name][0] for name in ("accuracy", "margin")}
    settings = PreferenceSettings(center=0.1)
    ours = of_ours(reward_loss, config, params, batch, settings, tmp_path / "g")
    check_same(ours, theirs, model, told)


@pytest.mark.parametrize("name", ["grpo", "bnpo", "dr_grpo", "rloo"])
def test_policy_gradients(models, tmp_path, name):
    model, _, config, params, ref_params = models
    texts = [(PROMPTS[0], c) for c in (*CHOSEN[:2], *REJECTED[:2])]
    batch = {key: value[:, 0] for key, value in laid((texts,), "right").items()}
    rewards = np.array([1.0, 0.0, 0.5, -1.0], np.float32)
    known = policy.advantages(
        jax.numpy.asarray(rewards), 2, scale="others" if name == "rloo" else "group"
    )
    batch["advantage"] = np.asarray(known)
    rows = {key: batch[key][:, None] for key in TEXTS}
    near = -np.asarray(token_nll(params, config, rows))[:, 0]
    batch["old"] = near + np.linspace(-0.4, 0.4, WIDTH, dtype=np.float32)
    batch["reference"] = -np.asarray(token_nll(ref_params, config, rows))[:, 0]
    width = max(len(c) for _, c in texts)
    start, beta = len(PROMPTS[0]) - 1, 0.0 if name == "rloo" else 0.1
    part = lambda x: torch.tensor(np.asarray(x)[:, start : start + width])  # noqa: E731
    ids, attention, mask = padded(texts, "right")
    size = len(PROMPTS[0])

    def logps(model, ids, mask, *args, **more):
        scores = torch.log_softmax(model(ids, attention_mask=mask).logits[:, :-1], -1)
        found = scores.gather(-1, ids[:, 1:, None])[..., 0][:, -width:]
        return found, torch.zeros_like(found), None

    inputs = {
        "prompt_ids": ids[:, :size], "prompt_mask": attention[:, :size],
        "completion_ids": ids[:, size:], "completion_mask": mask[:, size:],
        "advantages": torch.tensor(batch["advantage"]), "old_per_token_logps": part(batch["old"]),
        "ref_per_token_logps": part(batch["reference"]),
    }  # fmt: skip
    inputs["old_logps"] = (inputs["old_per_token_logps"] * inputs["completion_mask"]).sum(1)
    fake = SimpleNamespace(
        model=model, accelerator=Alone, aux_loss_enabled=False, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level="token", beta=beta,
        loss_type=name, epsilon_low=0.2, epsilon_high=0.2, use_vllm=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        current_gradient_accumulation_steps=1, max_completion_length=6,
        _entropy_bonus_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=logps,
    )  # fmt: skip
    trainer = trl.RLOOTrainer if name == "rloo" else trl.GRPOTrainer
    theirs = trainer._compute_loss(fake, model, inputs)

    def loss(params, config, batch, settings):
        more = {"length": 6} if name == "dr_grpo" else {}
        return policy.policy_loss(params, config, batch, loss=name, beta=beta, **more)

    ours = of_ours(loss, config, params, batch, None, tmp_path / "g")
    check_same(ours, theirs, model, {})
