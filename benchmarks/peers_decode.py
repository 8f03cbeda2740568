"""A decoding loop in PyTorch with keys and values in place, written as a PyTorch user would."""

from __future__ import annotations

import peers
import torch
import torch.nn.functional as F


class Loop:
    """Greedy or nucleus decoding by a decoder of `peers`, whose cache is allocated once.

    compiled: `torch.compile` the step for one token, which then attends to all slots under a mask,
    for its shapes must not change; else it attends to the slots that are filled.
    """

    def __init__(self, model: peers.Model, rows: int, slots: int, *, compiled: bool) -> None:
        config = model.decoder.config
        self.model, self.compiled, self.slots = model.eval(), compiled, slots
        shape = (config.layers, 2, rows, config.K, slots, config.H)
        weight = model.tokens.weight
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.turns = None
        if config.positions == "rope":
            angles = peers.angles(config, slots, weight.device)
            self.turns = tuple(part.to(weight.dtype) for part in angles)
        self.step = torch.compile(self._forward) if compiled else self._forward

    @torch.inference_mode()
    def __call__(
        self, prompt: torch.Tensor, length: int, *, temperature: float = 0.0, top_p: float = 1.0
    ) -> torch.Tensor:
        """Return new tokens [B, length] for prompts [B, T]; temperature 0 is greedy."""
        place, found = torch.arange(prompt.shape[1], device=prompt.device), []
        logits = self._forward(prompt, place, prompt.shape[1])
        for _ in range(length):
            token = drawn(logits, temperature, top_p) if temperature else logits.argmax(-1)
            found.append(token)
            if len(found) == length:
                break
            place = place[-1:] + 1
            filled = self.slots if self.compiled else prompt.shape[1] + len(found)
            logits = self.step(token[:, None], place, filled)
        return torch.stack(found, 1)

    def _forward(self, tokens: torch.Tensor, place: torch.Tensor, filled: int) -> torch.Tensor:
        """Return the last logits [B, V] of tokens [B, T] at places [T]."""
        tower = self.model.decoder
        x, turns = self.model.tokens(tokens), None
        if self.turns is None:
            x = x + tower.positions.weight[place]
        else:
            turns = tuple(part[place] for part in self.turns)
        seen = torch.arange(filled, device=place.device) <= place[:, None]
        for layer, cache in zip(tower.layers, self.cache, strict=True):
            x = x + self._attend(layer.attn, layer.attn_norm(x), turns, cache, place, seen)
            x = x + layer.feed(layer.feed_norm(x))
        return F.linear(tower.final_norm(x[:, -1]), self.model.tokens.weight)

    def _attend(self, attn, x, turns, cache, place, seen) -> torch.Tensor:
        config = attn.config
        widths = (config.heads * config.H, config.K * config.H, config.K * config.H)
        parts = attn.qkv(x).split(widths, dim=-1)
        q, k, v = (y.unflatten(-1, (-1, config.H)).transpose(1, 2) for y in parts)
        if turns is not None:
            q, k = peers.turn(q, *turns), peers.turn(k, *turns)
        cache[0].index_copy_(2, place, k)
        cache[1].index_copy_(2, place, v)
        k, v = cache[:, :, :, : seen.shape[1]]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, enable_gqa=config.heads != config.K
        )
        return attn.o(y.transpose(1, 2).flatten(2))


def drawn(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Return one token a row from the least set of tokens that holds top_p of the probability."""
    probs = torch.softmax(logits / temperature, -1)
    probs, order = probs.sort(descending=True)
    probs = torch.where(probs.cumsum(-1) - probs < top_p, probs, 0.0)
    return order.gather(-1, torch.multinomial(probs, 1))[:, 0]
