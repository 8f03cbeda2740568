"""`jaxgen caption`: text from images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import flags, inputs, texts
from jaxgen.errors import ConfigError
from jaxgen.text import tasks

Images = Annotated[
    str, Parameter(help="image files: PNG, JPEG, WebP and others; none: the lines of --input")
]


def caption(
    model: texts.Folder,
    /,
    *image: Images,
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Write what a model says of images: a caption, or the text that stands in them.

    One line an image, in their order; --input names a file with a path a line.
    The model is an encoder-decoder that reads images: ViT with GPT-2, or TrOCR
    for a line of printed or handwritten text. What its folder's
    generation_config.json asks for holds, unless an option says otherwise; where
    none says how, each token is the likeliest. Images need jaxgen[vision].

    For example:
        jaxgen caption downloads/vit-gpt2-image-captioning dog.jpg cat.png
        jaxgen caption downloads/trocr-base-printed line.png --beams 4
        jaxgen caption downloads/trocr --input files.txt --output texts.jsonl
    """
    wanted = flags.settings_of(settings)
    names = inputs.texts(image, job.input)
    if absent := [name for name in names if not Path(name).is_file()]:
        raise ConfigError(f"{absent[0]} is no file; name an image file")

    def work(model, names, progress, detail):
        return tasks.captions(
            model, names, wanted, batch=job.batch, progress=progress, detail=detail
        )

    texts.generate(model, names, job, wanted, work)
