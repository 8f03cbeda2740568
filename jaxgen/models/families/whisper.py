"""Whisper (Radford et al. 2022): sound to text; its encoder reads log-mel frames."""

from __future__ import annotations

from jaxgen.models.families import bart_kin
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, TIED, dropout, one_of
from jaxgen.models.families.rows import Row, linear

# Of training alone: masks of spectrograms, a head of classes; and of word timestamps.
UNUSED = """
    activation_dropout classifier_proj_size decoder_layerdrop encoder_layerdrop forced_decoder_ids
    mask_feature_length mask_feature_min_masks mask_feature_prob mask_time_length
    mask_time_min_masks mask_time_prob median_filter_width num_hidden_layers num_key_value_heads
"""
SIZES = {"stem.channels": "num_mel_bins", "stem.size": "max_source_positions"}

FAMILY = Family(
    model_type="whisper",
    architecture="WhisperForConditionalGeneration",
    heads={"WhisperModel": "none"},
    choices=bart_kin.CHOICES | {"norm_at": "pre", "biases": "no_keys", "stem.kind": "log_mel"},
    defaults=bart_kin.DEFAULTS | {"dropout": 0.0, "apply_spec_augment": False},
    rows=(
        Row("model.decoder.embed_tokens.weight", ("embed/tokens",), "V,D"),
        Row("proj_out.weight", ("unembed/tokens",), "V,D"),
        Row("model.encoder.embed_positions.weight", ("encoder/stem/positions",), "S,D"),
        Row("model.decoder.embed_positions.weight", ("embed/positions",), "S,D"),
        *linear("model.encoder.conv1", "encoder/stem/conv1", "D,M,W"),
        Row("model.encoder.conv2.weight", ("encoder/stem/conv2",), "O,D,W"),
        Row("model.encoder.conv2.bias", ("encoder/stem/conv2_bias",), "D"),
        *bart_kin.FINAL_NORMS,
    ),
    **bart_kin.SHARED
    | {
        "sizes": bart_kin.SIZES | SIZES | {"context": "max_target_positions"},
        # transformers has that scale, and multiplies nothing by it.
        "only": {"is_encoder_decoder": (True,), "is_decoder": (False,), "scale_embedding": (False,)}
        | {"use_weighted_layer_sum": (False,), "apply_spec_augment": (False, True)},
        "ignored": frozenset(UNUSED.split()),
        "quirks": (
            *(TIED, one_of("feed", "activation_function", FEED)),
            dropout(("dropout",), "attention_dropout"),
        ),
        "copies": {"proj_out.weight": "model.decoder.embed_tokens.weight"},
    },
)
