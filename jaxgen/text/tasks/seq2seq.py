"""Text from text with an encoder-decoder: translation, summaries, answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from jaxgen.errors import ConfigError, nearest
from jaxgen.pretrained import generation_config
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.batches import Progress
from jaxgen.text.defaults import settle
from jaxgen.text.loaded_model import LoadedModel, encode_texts
from jaxgen.text.request import Generation
from jaxgen.text.session import number_prompts, session_of

BEAMS = 5  # of a search that neither the caller nor the folder decides


def for_task(model: LoadedModel, task: str) -> LoadedModel:
    """Return the model with what its folder says of a task: prefix, lengths, beams, and the like.

    Args:
      model: of a folder whose config.json has task_specific_params, as T5's and BART's.
      task: one that stands there, such as "summarization" or "translation_en_to_de".

    Raises:
      ConfigError: for a task that the folder does not name.
    """
    known = tasks_of(model)
    if task not in known:
        if not known:
            raise ConfigError(f"the folder has no task_specific_params: drop task={task!r}")
        names = ", ".join(known)
        raise ConfigError(
            f"the folder has tasks {names}, but not task={task!r}{nearest(task, known)}; name one"
        )
    found, dropped = generation_config.for_task(model.generation_config, task)
    if dropped:
        warnings.warn(f"task {task}: not followed: {', '.join(dropped)}", stacklevel=2)
    start = found.decoder_start_token_id  # of mBART, which begins with the language it writes
    start = model.start if start is None else start
    return replace(model, generation_config=found, start=start)


def for_languages(
    model: LoadedModel, source: str | None = None, target: str | None = None
) -> LoadedModel:
    """Return the model with the languages that it translates from and to.

    Args:
      model: of a folder that knows languages by tokens of their own, as mBART, M2M-100 and NLLB.
      source: code of the language of the texts, such as "en_XX", "en" or "eng_Latn"; None: what the
        folder says, or else English.
      target: code of the language to write; None: what the folder says.

    Raises:
      ConfigError: for a language that the folder does not name, with near ones; or it names none.
    """
    if source is None and target is None:
        return model
    languages = model.languages
    if languages is None:
        raise ConfigError(
            f"the folder knows no languages by their codes: drop source={source!r} and "
            f"target={target!r}; T5 and its kind are told by a task or a prefix"
        )
    if source is not None:
        model = replace(model, source=languages.id_of(source, "source", "--from"))
    if target is None:
        return model
    wanted = languages.id_of(target, "target", "--to")
    if languages.target == "start":
        return replace(model, start=wanted)
    told = replace(model.generation_config, forced_bos_token_id=(wanted,))
    return replace(model, generation_config=told)


def tasks_of(model: LoadedModel) -> list[str]:
    """Return the tasks that a folder names in task_specific_params."""
    return [name for name, _ in model.generation_config.task_specific_params]


def rewrite(
    model: LoadedModel,
    texts: Sequence[str],
    settings: Generation | None = None,
    *,
    prefix: str | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """Return the likeliest text that the model makes of each text, in their order.

    The first of each list of `rewrites`, whose arguments and errors these are.
    """
    options = {"batch": batch, "progress": progress, "prefix": prefix}
    return [best[0].text for best in rewrites(model, texts, settings, **options)]


def rewrites(
    model: LoadedModel,
    texts: Sequence[str],
    settings: Generation | None = None,
    *,
    prefix: str | None = None,
    batch: int = 32,
    progress: Progress | None = None,
    detail: bool = False,
) -> list[list[Completion]]:
    """Return what the model makes of each text, the likeliest first of several (n_best, samples).

    settings: what they leave open is as the folder says, else a search with 5 beams, of at most
    twice the text's tokens and 16. prefix: what comes before each text that does not begin with it;
    None: what the folder says, of the task too after `for_task`. The rest is as in `Session.run`, a
    text's result that of the text alone. Raises ConfigError for a model that is no encoder-decoder,
    an empty text, or one too long unless settings.overflow is "cut"; NonFiniteError.
    """
    if model.config.topology != "encoder_decoder" or model.start is None:
        raise ConfigError(
            f"topology={model.config.topology} with start={model.start}: rewriting needs an "
            f"encoder_decoder and the id that its decoder begins with"
        )
    defaults = model.generation_config
    ways = [{"beams": BEAMS}, {"temperature": 0.0}]
    # A folder that says one beam means the likeliest token.
    settings = settle(settings or Generation(), defaults, *ways[defaults.num_beams == 1 :])
    prefix = defaults.prefix or "" if prefix is None else prefix
    overflow = "cut" if settings.overflow == "cut" else "refuse"
    rows = encode_texts(model, [_after(prefix, text) for text in texts], overflow)
    prompts = number_prompts(list(map(tuple, rows)), settings)
    return session_of(model).run(prompts, batch=batch, progress=progress, detail=detail)


def _after(prefix: str, text: str) -> str:
    """Return the text after the prefix, which it may begin with; nothing for no text."""
    begun = prefix.strip() and text.startswith(prefix)
    return text if begun or not text else prefix + text
