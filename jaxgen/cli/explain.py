"""`jaxgen explain`."""

from __future__ import annotations

import json as jsons
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import exits, flags, inputs, paths, start, texts
from jaxgen.cli.arguments import Adapters, Step, at_least
from jaxgen.cli.flags import Settings
from jaxgen.errors import ConfigError

Prompt = Annotated[
    str | None,
    Parameter(
        help="text that the model reads; @FILE reads a file; none: standard input",
        allow_leading_hyphen=True,
    ),
]
Target = Annotated[
    str | None,
    Parameter(
        help="explain this text instead of what the model makes; of a classifier, this label",
        allow_leading_hyphen=True,
    ),
]
Methods = Annotated[
    str,
    Parameter(
        help="with commas: integrated_gradients, gradient_x_input, occlusion, shapley, rollout, "
        "value_rollout"
    ),
]
Baseline = Annotated[
    Literal["tokens", "mean", "zero"],
    Parameter(
        help="what stands for no text: random tokens (the mean of 4 draws), the mean vector of the "
        "token table, or zeros"
    ),
]
Tokens = Annotated[
    int | None,
    at_least(1),
    Parameter(help="how many new tokens are explained; 4 at most by default"),
]
Memory = Annotated[
    bool, Parameter(help="search the run's training text for copies of the new tokens")
]
Out = Annotated[
    str | None, Parameter(help="folder of explanation.html and .json; the run's, by default")
]


def explain(
    run: texts.Folder,
    /,
    *,
    prompt: Prompt = None,
    target: Target = None,
    methods: Methods = "integrated_gradients,occlusion,rollout",
    baseline: Baseline = "tokens",
    tokens: Tokens = None,
    memory: Memory = False,
    out: Out = None,
    step: Step = None,
    adapter: Adapters = (),
    settings: Settings = None,
) -> None:
    """Say why a model goes on as it does: a page that needs no network, and JSON.

    The page shows how each token was chosen (and what each rule did), what it owes
    to the tokens before it, what the layers would say, and which heads moved it. A
    classifier's class is explained by the tokens of its text.

    For example:
        jaxgen explain quickstart --prompt "Return True if the"
        jaxgen explain quickstart --prompt "Return True if the" --target " object"
        jaxgen explain runs/classify --prompt "What a wonderful film." --target pos
        jaxgen explain quickstart --prompt "Raises " --top-k 20 --seed 1 --memory
    """
    wanted = flags.settings_of(settings)
    (text,) = inputs.prompts([prompt] if prompt is not None else ())
    folder, which, adapters = paths.adapted(run, step, adapter)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    home = files.to_path(out) if out else (folder if folder.is_dir() else Path()) / "explanation"
    paths.check_folder(home)
    cache = paths.cache()
    start.prepare_jax(cache)
    from jaxgen.explain import explanation
    from jaxgen.text.loaded_model import open_model

    with exits.in_folder(folder), flags.named():
        model = open_model(folder, step=which, adapter=adapters)
        index, parts = _index(folder, cache) if memory else None, ["tokens"]
        with terminal.waiting("explaining", lambda: parts[-1]):
            result = explanation.explain(
                model,
                text,
                target=target,
                settings=wanted,
                methods=names,
                baseline=baseline,
                tokens=tokens,
                index=index,
                name=Path(run).name or folder.name,
                progress=parts.append,
            )
    _write(result, home)


def _write(result: Any, home: Path) -> None:
    with files.refusals(home):
        home.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("explanation.html", result.html()),
        ("explanation.json", jsons.dumps(result.data, ensure_ascii=False, allow_nan=False)),
    ):
        files.write(home / name, content)
        print(f"wrote {home / name}")
    print(_summary(result.data), file=sys.stderr)


def _index(folder: Path, cache: Path) -> Any:
    """Return the index of a run's training text; ConfigError for a model without one."""
    from jaxgen.data.copies import index_copies
    from jaxgen.pretrained.assets import source_note
    from jaxgen.run import inputs as of_run
    from jaxgen.run.folder import TOKENIZER, existing_settings
    from jaxgen.tokens import load

    settings = existing_settings(folder) if paths.is_run(folder) else None
    if settings is None or not (settings.data.files or settings.data.corpus):
        raise ConfigError(
            f"--memory: {folder}{source_note(folder)} is no run with training text; leave it out"
        )
    corpus = of_run.prepare(settings, load(folder / TOKENIZER), cache, folder=folder)
    return index_copies([corpus.train])


def _summary(data: dict[str, Any]) -> str:
    """Return a line: for each explained token, what raises its score most."""
    method, own = next(iter(data["attributions"].items()))
    lines = []
    for one, values in zip(data["explained"], own["values"], strict=True):
        best = max(range(len(values)), key=lambda place: values[place])
        lines.append(f"{one['text']!r} most by {data['tokens'][best]!r}")
    return f"{method}: {', '.join(lines)}"
