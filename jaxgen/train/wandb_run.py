"""A run's metrics at Weights & Biases, through its own library."""

from __future__ import annotations

import html
import json
import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import MissingPackageError

IDENTITY = "wandb.json"
# Its library shows nothing, asks for nothing on the terminal, and does not read what is printed.
QUIET = {"silent": True, "console": "off", "login_timeout": 20}


def check(track: tuple[str, ...]) -> None:
    """Raise ConfigError if metrics shall go to W&B and its library is not installed."""
    if "wandb" in track and find_spec("wandb") is None:
        raise MissingPackageError(
            "train.track has wandb, which needs the `wandb` package: pip install 'jaxgen[wandb]'"
        )


class WandbRun:
    """A run of W&B; its id is kept in the folder, so that a resumed run goes on with it.

    Its own environment variables decide where it goes: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE,
    WANDB_API_KEY. Steps that a resumed run makes again are at W&B already, which ignores them.

    Args:
      folder: of the run, whose name it gets.
      resume_step: the step that the run goes on from; 0 begins another run of W&B.
      config: the run's settings, shown beside it.
    """

    def __init__(self, folder: Path, *, resume_step: int, config: Mapping[str, Any]) -> None:
        path = folder / IDENTITY
        if resume_step == 0 or not path.exists():
            files.write_json(path, {"id": secrets.token_hex(4)})
        self.library: Any = import_module("wandb")
        self.run = self.library.init(
            id=json.loads(path.read_bytes())["id"],
            resume="allow",
            name=folder.name,
            dir=str(folder.absolute()),
            config=dict(config),
            settings=dict(QUIET),
        )

    @property
    def url(self) -> str | None:
        """Return where the run is shown; None for one that is kept offline."""
        return self.run.url

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Log each value as "prefix/name"."""
        self.run.log({f"{prefix}/{name}": value for name, value in values.items()}, step=step)

    def text(self, step: int, title: str, text: str) -> None:
        """Log a sample text; it is shown verbatim."""
        shown = self.library.Html(f"<pre>{html.escape(text)}</pre>")
        self.run.log({f"samples/{title}": shown}, step=step)

    def close(self) -> None:
        """Wait until all is sent, and end the run."""
        self.run.finish()
