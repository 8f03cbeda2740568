"""jaxgen: text generation in JAX, from raw text to a served model.

Every public name is a pure function or frozen data, loaded on first use: importing the package
touches no device and does not import JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy
from jaxgen import train as _training

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxgen.cli.notebook import train
    from jaxgen.config import ModelConfig
    from jaxgen.config_experts import Experts
    from jaxgen.config_groups import (
        Delta,
        Latent,
        LayerKind,
        Relative,
        Rope,
        RopeScaling,
        Scores,
        Towers,
    )
    from jaxgen.config_media import Stem, Vision
    from jaxgen.config_parts import Disentangled, Embed, HeadLayer, PerLayer, Residual
    from jaxgen.decoding.beam.constraints import must_appear
    from jaxgen.decoding.beam.search import beam_search
    from jaxgen.decoding.beam.settings import beams
    from jaxgen.decoding.chain import chain, greedy
    from jaxgen.decoding.combined_steps import (
        classifier_free_guidance,
        dexperts,
        fused,
        guided,
        layer_contrast,
        self_debias,
    )
    from jaxgen.decoding.contrastive import contrastive_search
    from jaxgen.decoding.detailed import decode_detailed
    from jaxgen.decoding.drafts import draft_model, lookup
    from jaxgen.decoding.loop import decode
    from jaxgen.decoding.processors.allowed import allowed_tokens
    from jaxgen.decoding.processors.bias import bad_words, sequence_bias
    from jaxgen.decoding.processors.forcing import (
        force_first,
        force_last,
        length_decay,
        min_length,
        min_new_tokens,
        suppress,
        suppress_first,
    )
    from jaxgen.decoding.processors.repetition import (
        frequency_penalty,
        no_repeat_ngram,
        no_repeat_source,
        presence_penalty,
        repetition_penalty,
        source_penalty,
    )
    from jaxgen.decoding.processors.structure import choices, json_schema, regex
    from jaxgen.decoding.processors.truncation import (
        epsilon,
        eta,
        min_p,
        renormalize,
        temperature,
        top_h,
        top_k,
        top_n_sigma,
        top_p,
        typical,
    )
    from jaxgen.decoding.processors.watermark import detect, watermark
    from jaxgen.decoding.rerank import best_of, minimum_risk
    from jaxgen.decoding.speculate import multi_token_step, reader, speculate
    from jaxgen.decoding.stop import stop_strings
    from jaxgen.models.api import abstract, apply, axes, empty_cache, encode, init
    from jaxgen.models.presets import preset
    from jaxgen.pretrained.model import load, save
    from jaxgen.text.generate import generate, generate_detailed, generate_dola, prefill
    from jaxgen.text.model_steps import model_step
    from jaxgen.text.session import open_session as open
    from jaxgen.text.strategies import (
        generate_beams,
        generate_contrastive,
        generate_lookup,
        generate_speculative,
    )
    from jaxgen.train.losses import Loss, causal_loss
    from jaxgen.train.state import train_state
    from jaxgen.train.step import train_step

__all__ = [
    "Delta",
    "Disentangled",
    "Embed",
    "Experts",
    "HeadLayer",
    "Latent",
    "LayerKind",
    "Loss",
    "ModelConfig",
    "PerLayer",
    "Relative",
    "Residual",
    "Rope",
    "RopeScaling",
    "Scores",
    "Stem",
    "Towers",
    "Vision",
    "abstract",
    "allowed_tokens",
    "apply",
    "axes",
    "bad_words",
    "beam_search",
    "beams",
    "best_of",
    "causal_loss",
    "chain",
    "choices",
    "classifier_free_guidance",
    "contrastive_search",
    "decode",
    "decode_detailed",
    "detect",
    "dexperts",
    "draft_model",
    "empty_cache",
    "encode",
    "epsilon",
    "eta",
    "force_first",
    "force_last",
    "frequency_penalty",
    "fused",
    "generate",
    "generate_beams",
    "generate_contrastive",
    "generate_detailed",
    "generate_dola",
    "generate_lookup",
    "generate_speculative",
    "greedy",
    "guided",
    "init",
    "json_schema",
    "layer_contrast",
    "length_decay",
    "load",
    "lookup",
    "min_length",
    "min_new_tokens",
    "min_p",
    "minimum_risk",
    "model_step",
    "multi_token_step",
    "must_appear",
    "no_repeat_ngram",
    "no_repeat_source",
    "open",
    "prefill",
    "presence_penalty",
    "preset",
    "reader",
    "regex",
    "renormalize",
    "repetition_penalty",
    "save",
    "self_debias",
    "sequence_bias",
    "source_penalty",
    "speculate",
    "stop_strings",
    "suppress",
    "suppress_first",
    "temperature",
    "top_h",
    "top_k",
    "top_n_sigma",
    "top_p",
    "train",
    "train_state",
    "train_step",
    "typical",
    "watermark",
]

__getattr__, __dir__ = lazy.attach(__name__)

# One name for a function and for the package of what it does: `jaxgen.train("my.txt")`.
lazy.make_callable(_training, "jaxgen.cli.notebook", "train")
