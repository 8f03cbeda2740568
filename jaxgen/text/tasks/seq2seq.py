"""Text from text with an encoder-decoder: translation, summaries, answers."""

from __future__ import annotations

from collections.abc import Sequence

from jaxgen.errors import ConfigError
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.batches import Progress
from jaxgen.text.defaults import settle
from jaxgen.text.loaded_model import LoadedModel, encode_texts
from jaxgen.text.request import Generation
from jaxgen.text.session import number_prompts, session_of

BEAMS = 5  # of a search that neither the caller nor the folder decides


def rewrite(
    model: LoadedModel,
    texts: Sequence[str],
    settings: Generation | None = None,
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """Return the likeliest text that the model makes of each text, in their order.

    The first of each list of `rewrites`, whose arguments and errors these are.
    """
    options = {"batch": batch, "progress": progress}
    return [best[0].text for best in rewrites(model, texts, settings, **options)]


def rewrites(
    model: LoadedModel,
    texts: Sequence[str],
    settings: Generation | None = None,
    *,
    batch: int = 32,
    progress: Progress | None = None,
    detail: bool = False,
) -> list[list[Completion]]:
    """Return what the model makes of each text, the likeliest first of several (n_best, samples).

    settings: what they leave open is as the folder says, else a search with 5 beams, of at most
    twice the text's tokens and 16. The rest is as in `Session.run`, a text's result that of the
    text alone. Raises ConfigError for a model that is no encoder-decoder, an empty text, or one
    too long unless settings.overflow is "cut"; NonFiniteError.
    """
    if model.config.topology != "encoder_decoder" or model.start is None:
        raise ConfigError(
            f"topology={model.config.topology} with start={model.start}: rewriting needs an "
            f"encoder_decoder and the id that its decoder begins with"
        )
    defaults = model.generation_config
    settings = settle(settings or Generation(), defaults, {"beams": BEAMS}, {"temperature": 0.0})
    rows = [
        tuple(row)
        for row in encode_texts(model, texts, "cut" if settings.overflow == "cut" else "refuse")
    ]
    prompts = number_prompts(rows, settings)
    return session_of(model).run(prompts, batch=batch, progress=progress, detail=detail)
