"""Why a model says what it says: attributions, and what its layers and heads do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.explain.attention import attention_maps, rollout
    from jaxgen.explain.attribution import (
        Attribution,
        average,
        gradient_x_input,
        integrated_gradients,
        occlusion,
        sampled_shapley,
        shapley,
    )
    from jaxgen.explain.curves import faithfulness
    from jaxgen.explain.decode_trace import replay, trace
    from jaxgen.explain.direct import direct_logits
    from jaxgen.explain.explanation import explain
    from jaxgen.explain.lens import fit_tuned_lens, logit_lens
    from jaxgen.explain.patching import ablate, induction_scores, largest, patch
    from jaxgen.explain.scores import class_scores, no_text, token_scores

__all__ = [
    "Attribution",
    "ablate",
    "attention_maps",
    "average",
    "class_scores",
    "direct_logits",
    "explain",
    "faithfulness",
    "fit_tuned_lens",
    "gradient_x_input",
    "induction_scores",
    "integrated_gradients",
    "largest",
    "logit_lens",
    "no_text",
    "occlusion",
    "patch",
    "replay",
    "rollout",
    "sampled_shapley",
    "shapley",
    "token_scores",
    "trace",
]

__getattr__, __dir__ = lazy.attach(__name__)
