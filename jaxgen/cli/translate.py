"""`jaxgen translate` and `jaxgen summarize`: text from text with an encoder-decoder."""

from __future__ import annotations

from jaxgen.cli import flags, inputs, texts
from jaxgen.text import tasks


def translate(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Translate texts, or write what else an encoder-decoder has learned to.

    One text a line in, one a line out. Texts of about one length share a batch;
    a text's result does not depend on the others. What a folder's
    generation_config.json asks for holds, unless an option says otherwise; where
    neither says how, a search keeps 5 beams.

    For example:
        jaxgen translate runs/translate "A dog runs through the snow."
        jaxgen translate runs/translate --input test.en --output test.de --beams 4
        jaxgen summarize runs/summarize_docstrings --input functions.txt
    """
    wanted = flags.settings_of(settings)

    def work(model, sources, progress, detail):
        return tasks.rewrites(
            model,
            sources,
            wanted,
            batch=job.batch,
            progress=progress,
            detail=detail,
        )

    texts.generate(run, inputs.texts(text, job.input), job, wanted, work)
