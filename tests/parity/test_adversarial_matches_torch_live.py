"""Adversarial losses of a tiny GPT-2, and their gradients, are those of plain loops in torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.train.adversarial import perturbed, smooth_loss, uniform
from jaxgen.train.settings import PERTURBING, AdversarialSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
TARGETS = np.array([[1, 4, 1, 5, 9], [2, 6, 5, -100, -100]])
KEY, EPSILON = jax.random.key(7), 0.7


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**sizes, **off, initializer_range=0.3, bos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return model, *jaxgen.load(folder)


def log_probs(model, delta=0.0):
    embeds = model.transformer.wte(torch.tensor(TOKENS)) + delta
    return model(inputs_embeds=embeds).logits.log_softmax(-1)


def nll(logp):
    return torch.nn.functional.nll_loss(
        logp.flatten(0, 1), torch.tensor(TARGETS).flatten(), reduction="sum"
    )


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)[torch.tensor(TARGETS >= 0)].sum()


def scaled(x, size, norm):
    if norm == "linf":
        return size * x.sign()
    return size * x / x.flatten(1).norm(dim=1)[:, None, None]


def within(x, size, norm):
    if norm == "linf":
        return x.clamp(-size, size)
    return x * (size / x.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None]


def noise(part, norm, key=KEY):
    drawn = torch.tensor(np.asarray(uniform(jax.random.fold_in(key, 0), (2, 5, 8))))
    return drawn * EPSILON * part / (40**0.5 if norm == "l2" else 1)


def slope(value, delta):
    delta = delta.clone().requires_grad_()
    return torch.autograd.grad(value(delta), delta)[0]


def reference(model, kind, norm, steps):
    size, climb = 2.5 * EPSILON / steps, lambda d: nll(log_probs(model, d))
    up = lambda value, d: within(d + scaled(slope(value, d), size, norm), EPSILON, norm)  # noqa: E731
    clean = log_probs(model)
    if kind == "neftune":
        return nll(log_probs(model, noise(1.0, "l2")))
    if kind == "freelb":
        delta, total = noise(1.0, norm), 0.0
        for _ in range(steps):
            total = total + nll(log_probs(model, delta)) / steps
            delta = up(climb, delta)
        return total
    if kind in ("fgm", "pgd"):
        delta = torch.zeros(2, 5, 8)
        for _ in range(steps):
            delta = up(climb, delta)
        return 0.5 * nll(clean) + 0.5 * nll(log_probs(model, delta))
    delta, held = noise(0.1, norm, jax.random.fold_in(KEY, 1)), clean.detach()
    if kind == "vat":
        one_way = lambda d: kl(held, log_probs(model, d))  # noqa: E731
        for _ in range(steps):
            delta = scaled(slope(one_way, delta), EPSILON / 10, norm)
        return nll(clean) + kl(held, log_probs(model, 10 * delta))
    both_ways = lambda p, q: kl(p, q) + kl(q, p)  # noqa: E731
    for _ in range(steps):
        delta = up(lambda d: both_ways(held, log_probs(model, d)), delta)
    return nll(clean) + both_ways(clean, log_probs(model, delta))


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        *((kind, "l2") for kind in ("fgm", "pgd", "freelb", "neftune", "vat", "smart")),
        ("pgd", "linf"),
    ],
)
def test_a_loss_and_its_gradient_are_torchs(both, kind, norm):
    model, config, params = both
    steps = 1 if kind in ("fgm", "neftune") else 2
    more = {"steps": steps} if steps > 1 else {}
    own = AdversarialSettings(kind=kind, epsilon=EPSILON, norm=norm, **more)
    loss = (
        perturbed(jaxgen.causal_loss, own)
        if kind in PERTURBING
        else partial(smooth_loss, settings=own)
    )
    batch = {"tokens": jnp.asarray(TOKENS), "targets": jnp.asarray(TARGETS)}
    if kind == "fgm":  # whose one step is all of epsilon
        wanted = 0.5 * nll(log_probs(model)) + 0.5 * nll(
            log_probs(
                model,
                scaled(
                    slope(lambda d: nll(log_probs(model, d)), torch.zeros(2, 5, 8)), EPSILON, norm
                ),
            )
        )
    else:
        wanted = reference(model, kind, norm, steps)
    (table,) = torch.autograd.grad(wanted, [model.transformer.wte.weight])
    total = lambda params: loss(params, config, batch, KEY).total  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(total))(params)
    np.testing.assert_allclose(value, wanted.item(), rtol=2e-5)
    np.testing.assert_allclose(grads["embed"]["tokens"], table.numpy(), atol=2e-4, rtol=2e-4)


def test_two_draws_of_dropout_are_compared_as_in_the_paper(both):
    _, config, params = both
    config = config.replace(dropout=0.2)
    own = AdversarialSettings(kind="rdrop", weight=3.0)
    batch = {"tokens": jnp.asarray(TOKENS), "targets": jnp.asarray(TARGETS)}
    found = jax.jit(lambda p: smooth_loss(p, config, batch, KEY, settings=own))(params)
    draw = jax.jit(lambda p, key: jaxgen.apply(p, config, batch["tokens"], key=key).logits)
    p, q = (
        torch.tensor(np.asarray(draw(params, key))).log_softmax(-1)
        for key in (KEY, jax.random.fold_in(KEY, 1))
    )
    wanted = (nll(p) + nll(q)) / 2 + 3.0 * (kl(p, q) + kl(q, p)) / 2
    assert kl(p, q) > 0.01
    np.testing.assert_allclose(found.total, wanted.item(), rtol=2e-5)
