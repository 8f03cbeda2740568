"""Prompts and their settings as requests that fit the model: what is read, how much is written."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.media.images import ImageLike
from jaxgen.errors import ConfigError
from jaxgen.text import moderation
from jaxgen.text.batches import Request, last_half, num_opening
from jaxgen.text.defaults import fill
from jaxgen.text.loaded_model import LoadedModel, check_generates
from jaxgen.text.request import Generation
from jaxgen.tokens.protocol import check_ids

DEFAULT_LENGTH = 128  # new tokens after a prompt, if the context has room for them

Text = str | Sequence[int] | np.ndarray  # [Y, X, colours] is an image, where a model reads them
# Settings of what an encoder reads as tokens.
OF_SOURCES = ("source_penalty", "no_repeat_source", "guidance", "debias", "negative_prompt")


class Prompt(NamedTuple):
    """A prompt, how to go on from it, and the place of its first text among its seed's draws.

    text: a text, or ids, which are read as they are, or the numbers of an image that
    `data.media.Pixels` makes. user: whose adapter and preferences hold, in a session that was
    opened with users. images: files, or bytes [height, width, 3], of a decoder that reads them in
    the places of a token in the prompt, in their order.
    """

    text: Text
    settings: Generation = Generation()
    number: int = 0
    user: str | None = None
    images: Sequence[ImageLike] = ()


def number_prompts(
    texts: Sequence[Text], settings: Generation, user: str | None = None
) -> list[Prompt]:
    """Return prompts that share their settings, no two texts of them their draws."""
    return [Prompt(text, settings, i * settings.draws_each, user) for i, text in enumerate(texts)]


def ids_of(model: LoadedModel, text: Any, images: bool = False) -> list[int]:
    """Return what the model reads of a prompt; ConfigError for one that is empty, or none.

    images: whether the mark of an image in a text is one; other marks are only text.
    """
    if not isinstance(text, str | list | tuple | np.ndarray):
        raise ConfigError(
            f"prompt={text!r:.60} is {type(text).__name__}, neither a text nor token ids"
        )
    if not len(text):
        raise ConfigError("prompt is empty; give at least one character to go on from")
    if not isinstance(text, str):
        if isinstance(text[0], str):
            raise ConfigError(f"prompt={text!r:.60} is a list of texts; give one, or call complete")
        odd = next((token for token in text if not isinstance(token, int | np.integer)), None)
        if odd is not None:
            raise ConfigError(f"prompt holds {odd!r:.40}, which is no token id; give integers")
        ids = [int(token) for token in text]
        check_ids(ids, model.tokenizer.vocab_size)
        return ids
    before, after = model.around
    mark = model.image_mark if images else None
    if mark is None:
        own = model.tokenizer.encode(text)
    else:
        spans = [found.span() for found in re.finditer(re.escape(mark), text)]
        begins, ends = [0, *(end for _, end in spans)], [*(low for low, _ in spans), len(text)]
        plain = [span for span in zip(begins, ends, strict=True) if span[0] < span[1]]
        tokenizer: Any = model.tokenizer  # with marks
        own = tokenizer.encode_marked(text, plain=plain)
    ids = [*before, *own]
    return [*ids, *after] if model.reads_sources else ids


def with_places(model: LoadedModel, ids: list[int], images: Sequence[ImageLike]) -> list[int]:
    """Return the ids of a prompt with as many places for each image as the model reads vectors.

    Raises ConfigError unless the prompt has a place for each.
    """
    vision = model.config.vision
    if not images and (vision is None or vision.token not in ids):
        return ids
    assert model.images is not None and vision is not None  # it raises for a model that reads none
    count = ids.count(vision.token)
    if count == len(images) * vision.vectors:
        places = 1
    elif count == len(images):
        places = vision.vectors
    else:
        raise ConfigError(
            f"prompt has {count} places for {len(images)} images; write "
            f"{model.image_mark or f'token {vision.token}'} once for each"
        )
    ids = [one for token in ids for one in [token] * (places if token == vision.token else 1)]
    if ids[-1] == vision.token:
        raise ConfigError("prompt ends with an image; put some text behind it")
    return ids


def _seen(model: LoadedModel, images: Sequence[ImageLike], settings: Generation) -> Any:
    """Return the numbers [M, rows, columns, colours] of the images of a prompt, or None."""
    if not images:
        return None
    if settings.overflow == "slide":
        raise ConfigError("overflow=slide would forget the images of a prompt; leave it out")
    if settings.debias is not None:
        raise ConfigError("debias is not known with images in the prompt; leave it out")
    return np.stack([model.images(image) for image in images])


def room_after(model: LoadedModel, ids: Sequence[int]) -> int:
    """Return how many new tokens the context leaves after a prompt; ConfigError if none."""
    context, sources = model.config.longest, model.reads_sources
    room = context - (1 if sources else len(ids))
    over = len(ids) - context if sources else 1 - room
    if over > 0:
        more = "" if sources else ", which must hold at least one more"
        raise ConfigError(
            f"prompt has {len(ids)} tokens but context={context}{more}; shorten the prompt by "
            f"{over}, or cut it with overflow=cut"
        )
    return room


def requests_of(model: LoadedModel, prompts: Sequence[Prompt]) -> list[list[Request]]:
    """Return the requests of each prompt, one for each text that is drawn.

    Prompts that are cut, as their `overflow` says, are a warning in one line. Raises ConfigError
    for a prompt or a setting that can't be.
    """
    requests = [_requests(model, one) for one in prompts]
    dropped = [row[0].dropped for row in requests if row[0].dropped]
    if dropped:
        side = "end" if model.reads_sources else "beginning"
        warnings.warn(
            f"{len(dropped)} of {len(requests)} prompts were cut at the {side} to fit "
            f"context={model.config.context} ({max(dropped)} tokens dropped of the longest)",
            stacklevel=4,
        )
    return requests


def _requests(model: LoadedModel, prompt: Prompt) -> list[Request]:
    check_generates(model)
    text, asked, number, user, images = prompt
    media = None if model.config.stem is None else _media_of(model, text, asked)
    whole = with_places(model, ids_of(model, text, bool(images)), images) if media is None else []
    context, sources = model.config.longest, model.reads_sources
    if asked.policy is not None:
        words = text if isinstance(text, str) else model.tokenizer.decode(whole)
        moderation.check_prompt(asked.policy, words)
    settings = fill(asked, model.generation_config, sources or len(whole) == 1)
    ids, limit = (_fit_source if sources else _fit)(model, whole, asked, settings)
    media = _seen(model, images, settings) if images else media
    if images and len(ids) < len(whole):
        raise ConfigError(
            f"prompt has {len(whole)} tokens with its images, and overflow=cut would cut it; "
            f"shorten it"
        )
    if settings.min_new_tokens is not None and settings.min_new_tokens > limit:
        raise ConfigError(
            f"min_new_tokens={settings.min_new_tokens} is more than the {limit} new tokens "
            f"that there are to make"
        )
    away = settings.negative_prompt
    other = () if away is None else tuple(ids_of(model, away))
    if settings.debias is not None and away is not None:  # it stands before the prompt
        other = tuple(ids_of(model, away + text) if isinstance(text, str) else [*other, *ids])
    if other and len(other) + limit > context:
        raise ConfigError(
            f"negative_prompt of {len(other)} + {limit} new tokens exceed context={context}; "
            f"shorten it"
        )
    if settings.guidance is not None and not other and sources:
        raise ConfigError(
            f"guidance={settings.guidance} needs negative_prompt with "
            f"topology={model.config.topology}: its texts go on from a source"
        )
    for name in ("top_logprobs", "beams"):
        if (getattr(settings, name) or 0) > model.tokenizer.vocab_size:
            known = f"the {model.tokenizer.vocab_size} tokens of the vocabulary"
            raise ConfigError(f"{settings.describe(name)} exceeds {known}")
    # A text goes on from a prompt that is a text; ids, and a source, it stands beside.
    after = tuple(ids) if isinstance(text, str) and not sources else ()
    about, draws = (other, after, len(whole) - len(ids), user, media), range(settings.draws_each)
    return [Request(ids, limit, settings, number + j, *about) for j in draws]


def _media_of(model: LoadedModel, image: Any, asked: Generation) -> np.ndarray:
    """Return the image of a prompt; ConfigError for anything else, and settings of source texts."""
    stem = model.config.stem
    assert stem is not None
    if stem.kind != "patches" or not isinstance(image, np.ndarray) or image.shape != stem.shape:
        raise ConfigError(
            f"stem.kind={stem.kind}: the encoder reads no tokens, but numbers of the shape "
            f"{list(stem.shape)}; `{stem.verb}` makes them of files"
        )
    for name in OF_SOURCES:
        if asked.gives(name):
            raise ConfigError(f"{asked.describe(name)} has no effect: an image has no tokens")
    return image


def _fit_source(
    model: LoadedModel, ids: list[int], asked: Generation, filled: Generation
) -> tuple[list[int], int]:
    """Return (what an encoder reads, new tokens at most), as `overflow` says."""
    context = model.config.context
    if filled.overflow == "slide":
        raise ConfigError(
            f"overflow=slide with topology={model.config.topology}: a source is read at once; give "
            f"overflow=cut"
        )
    if filled.overflow == "cut" and len(ids) > context:
        _, end = model.around
        end = end if ids[len(ids) - len(end) :] == end else []
        ids = [*ids[: context - len(end)], *end]
    ours = 2 * len(ids) + 16 if model.config.stem is None else DEFAULT_LENGTH
    length = _length(asked, filled, 1, ours)
    return ids, _within(model, length, room_after(model, ids), 1, asked)


def _fit(
    model: LoadedModel, ids: list[int], asked: Generation, filled: Generation
) -> tuple[list[int], int]:
    """Return (what is read of a prompt, new tokens at most), as `overflow` says."""
    context, length = model.config.longest, _length(asked, filled, len(ids), DEFAULT_LENGTH)
    if filled.overflow == "slide":
        ids = _last(model, ids, last_half(context)) if len(ids) >= context else ids
        return ids, length if room_after(model, ids) else 0
    given = asked.max_new_tokens or asked.max_length
    if filled.overflow == "cut" and len(ids) + (length if given else 1) > context:
        count = context - (length if given else min(length, last_half(context)))
        if count < 1:
            raise ConfigError(
                f"{length} new tokens leave no room for a prompt in context={context}; ask for "
                f"fewer, or go on past it with overflow=slide"
            )
        ids = _last(model, ids, count)
    return ids, _within(model, length, room_after(model, ids), len(ids), asked)


def _length(asked: Generation, filled: Generation, before: int, ours: int) -> int:
    """Return how many new tokens are asked for, else what the folder says, else ours."""
    if filled.max_new_tokens is None and filled.max_length is not None:
        return max(filled.max_length - before, 1)
    return ours if filled.max_new_tokens is None else filled.max_new_tokens


def _within(model: LoadedModel, length: int, room: int, before: int, asked: Generation) -> int:
    """Return the new tokens at most; ConfigError if more are asked for than there is room."""
    if length > room and (asked.max_new_tokens or asked.max_length):
        more = "" if model.reads_sources else ", or go on past it with overflow=slide"
        raise ConfigError(
            f"prompt of {before} + {length} new tokens exceed context={model.config.longest}; ask "
            f"for at most {room}{more}"
        )
    return min(length, room)


def _last(model: LoadedModel, ids: list[int], count: int) -> list[int]:
    """Return the last ids of a prompt, `count` with those that open every text."""
    opening = min(num_opening(ids, model), count - 1)
    return [*ids[:opening], *ids[len(ids) - count + opening :]]
