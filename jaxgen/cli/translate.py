"""`jaxgen translate` and `jaxgen summarize`: text from text with an encoder-decoder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from jaxgen.cli import flags, inputs, texts
from jaxgen.errors import ConfigError
from jaxgen.text import tasks

if TYPE_CHECKING:
    from jaxgen.text.loaded_model import LoadedModel

Task = Annotated[
    str | None,
    Parameter(help="of the folder's task_specific_params; default: the verb's, if there is one"),
]
Prefix = Annotated[
    str | None, Parameter(help="what comes before each text; default: what the folder says")
]


From = Annotated[
    str | None,
    Parameter(name="--from", help="language of the texts, by its code; default: the folder's"),
]
To = Annotated[
    str | None, Parameter(name="--to", help="language to write, by its code; default: the folder's")
]
List = Annotated[
    bool, Parameter(name="--languages", negative=(), help="print the codes of languages, and end")
]


def translate(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    source: From = None,
    target: To = None,
    languages: List = False,
    task: Task = None,
    prefix: Prefix = None,
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Translate texts, or write what else an encoder-decoder has learned to.

    One text a line in, one a line out. Texts of about one length share a batch;
    a text's result does not depend on the others. What a folder's
    generation_config.json asks for holds, and what its config.json asks for the
    task, unless an option says otherwise; where none says how, a search keeps 5
    beams.

    For example:
        jaxgen translate runs/translate "A dog runs through the snow."
        jaxgen translate runs/translate --input test.en --output test.de --beams 4
        jaxgen translate downloads/t5-small "A dog." --task translation_en_to_de
        jaxgen translate downloads/nllb "A dog." --from eng_Latn --to deu_Latn
    """
    if languages:
        print("\n".join(_languages(run)))
        return
    between = (source, target)
    _rewrite("translation", run, text, task, prefix, settings, job, between)


def summarize(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    task: Task = None,
    prefix: Prefix = None,
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Summarise texts with an encoder-decoder.

    As `jaxgen translate`, for the task "summarization" of a folder's config.json.

    For example:
        jaxgen summarize runs/summarize_docstrings --input functions.txt
        jaxgen summarize downloads/bart-large-cnn --input news.txt --max-length 60
    """
    _rewrite("summarization", run, text, task, prefix, settings, job, (None, None))


def _languages(run: str) -> list[str]:
    """Return the codes of the languages that a folder knows."""
    from jaxgen.pretrained.assets import read_tokenizer
    from jaxgen.pretrained.languages import read_languages
    from jaxgen.pretrained.sources import local_path

    home = local_path(run)
    known = read_languages(home, read_tokenizer(home))
    if known is None:
        raise ConfigError(f"{run} knows no languages by their codes")
    return sorted(known.codes)


def _rewrite(
    verb: str, run, text, task, prefix, settings, job, between: tuple[str | None, str | None]
) -> None:
    wanted = flags.settings_of(settings)

    def work(model, sources, progress, detail):
        return tasks.rewrites(
            model,
            sources,
            wanted,
            prefix=prefix,
            batch=job.batch,
            progress=progress,
            detail=detail,
        )

    def prepare(model: LoadedModel) -> tuple[LoadedModel, list[str]]:
        notes, chosen = [], task or _own_task(model, verb)
        if chosen is not None:
            model = tasks.for_task(model, chosen)
            notes.append(f"task={chosen}")
        model = tasks.for_languages(model, *between)
        if model.generation_config.prefix and prefix is None:
            notes.append(f"prefix={model.generation_config.prefix!r}")
        return model, notes

    texts.generate(run, inputs.texts(text, job.input), job, wanted, work, prepare)


def _own_task(model: LoadedModel, verb: str) -> str | None:
    """Return the folder's only task that the verb stands for; several are said, to choose one."""
    names = [name for name in tasks.tasks_of(model) if name.startswith(verb)]
    if len(names) > 1:
        print(f"the folder knows {', '.join(names)}: choose one with --task", file=sys.stderr)
    return names[0] if len(names) == 1 else None
