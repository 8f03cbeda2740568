"""Text from images with an encoder-decoder: captions, and the text that stands in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.data.media.images import ImageLike
from jaxgen.errors import ConfigError
from jaxgen.pretrained.preprocessor import read_pixels
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.batches import Progress
from jaxgen.text.defaults import settle
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation
from jaxgen.text.session import session_of


def caption(
    model: LoadedModel,
    images: Sequence[ImageLike],
    settings: Generation | None = None,
    *,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Return the likeliest text that the model writes of each image, in their order.

    The first of each list of `captions`, whose arguments and errors these are.
    """
    rows = captions(model, images, settings, batch=batch, progress=progress)
    return [best[0].text for best in rows]


@arguments.checked(batch=at_least(1))
def captions(
    model: LoadedModel,
    images: Sequence[ImageLike],
    settings: Generation | None = None,
    *,
    batch: int = 8,
    progress: Progress | None = None,
    detail: bool = False,
) -> list[list[Completion]]:
    """Return what the model writes of each image, the likeliest first of several (beams, samples).

    Args:
      model: of images, such as ViT with GPT-2 or TrOCR, with its tokenizer.
      images: files, or bytes [height, width, 3] of red, green and blue.
      settings: what they leave open is as the folder says, else the likeliest token each time, at
        most 128. The rest is as in `Session.run`; an image's text is that of the image alone.
      batch: images decoded at once.

    Returns:
      Completions of each image.

    Raises:
      ConfigError: for a model that reads no images, or what is no image; DataError for a file that
        holds none; NonFiniteError.
    """
    stem = model.config.stem
    if stem is None or stem.kind != "patches":
        raise ConfigError(
            f"{model.home or 'the model'} reads no images (stem={stem and stem.kind}); captions "
            f"need a model such as ViT with GPT-2, or TrOCR"
        )
    if isinstance(images, str | np.ndarray):
        raise ConfigError(f"images={images!r:.40} is one image; give a list of them: [...]")
    front = read_pixels(model.home, stem)
    settings = settle(settings or Generation(), model.generation_config, {"temperature": 0.0})
    if len(images) > batch:  # a file that holds none is told before hours of work, not behind them
        for image in images:
            front(image)
    session, rows = session_of(model), []
    for begin in range(0, len(images), batch):  # so that few images are in memory at once
        prompts = [
            Prompt(front(image), settings, (begin + place) * settings.draws_each)
            for place, image in enumerate(images[begin : begin + batch])
        ]
        rows += session.run(prompts, batch=batch, detail=detail)
        if progress:
            progress(len(rows), len(images))
    return rows
