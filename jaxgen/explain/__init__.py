"""Why a model says what it says: attributions, and what its layers and heads do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.explain.attention import attention_maps, rollout
    from jaxgen.explain.attribution import (
        Attribution,
        gradient_x_input,
        integrated_gradients,
        occlusion,
        sampled_shapley,
        shapley,
    )
    from jaxgen.explain.faithfulness import faithfulness
    from jaxgen.explain.scores import class_scores, token_scores

__all__ = [
    "Attribution",
    "attention_maps",
    "class_scores",
    "faithfulness",
    "gradient_x_input",
    "integrated_gradients",
    "occlusion",
    "rollout",
    "sampled_shapley",
    "shapley",
    "token_scores",
]

__getattr__, __dir__ = lazy.attach(__name__)
