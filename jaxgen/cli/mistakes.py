"""Mistakes on the command line, each in one line with the likely remedy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cyclopts import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from jaxgen.errors import ConfigError, nearest

CONFIGURED = ("train", "quickstart", "tokenize", "plan", "doctor")  # verbs that take keys
# What other programs call as options, and what the key of a config is for it.
_OPTIONS = {
    "train.steps": "steps max-steps num-steps iterations iters max-iters epochs num-train-epochs",
    "train.learning_rate": "lr learning-rate",
    "train.batch": "batch batch-size bs per-device-train-batch-size",
    "train.accumulate": "accumulate gradient-accumulation-steps grad-accum",
    "train.warmup": "warmup warmup-steps",
    "train.weight_decay": "weight-decay wd",
    "train.optimizer": "optimizer optim",
    "train.schedule": "schedule lr-scheduler lr-scheduler-type scheduler",
    "train.seed": "seed",
    "train.clip": "clip grad-clip max-grad-norm",
    "train.log_every": "log-every logging-steps log-interval",
    "train.validate_every": "validate-every eval-every eval-steps eval-interval",
    "checkpoint.every": "save-every save-steps save-interval",
    "model.layers": "layers num-layers n-layer n-layers depth",
    "model.d_model": "d-model dim width hidden-size n-embd embedding-dim",
    "model.heads": "heads num-heads n-head n-heads",
    "model.context": "context context-length block-size seq-len max-seq-len max-length",
    "model.dropout": "dropout",
    "model.compute_dtype": "dtype precision compute-dtype",
    "tokenizer.vocab_size": "vocab-size vocab",
    "tokenizer.file": "tokenizer",
    "data.files": "data file files data-path dataset train-file text input",
    "init_from": "init-from model model-name-or-path pretrained checkpoint resume-from-checkpoint",
}
KEYS = {name: key for key, names in _OPTIONS.items() for name in names.split()}


def explain(error: CycloptsError, verbs: Sequence[str]) -> ConfigError:
    """Return what cyclopts found as a ConfigError of one line."""
    error.verbose = False
    verb = " ".join(error.command_chain or ())
    more = f"; see `jaxgen {verb} --help`" if verb else "; see `jaxgen --help`"
    if isinstance(error, UnknownCommandError):
        return ConfigError(_unknown_verb(error, verbs) + more)
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        key, equals, value = word.lstrip("-").partition("=")
        if "." in key:
            return ConfigError(
                f"unknown option {word!r}: overrides have no dashes; "
                f"write {key}={value if equals else 'VALUE'}"
            )
        names = [
            n for argument in error.argument_collection for n in argument.names if n[:1] == "-"
        ]
        option = word.partition("=")[0]
        plain = key.replace("_", "-").lower()
        if verb in CONFIGURED and plain in KEYS:
            return ConfigError(
                f"unknown option {option!r}: it is a key of the config, without dashes; write "
                f"{KEYS[plain]}={value if equals else 'VALUE'}"
            )
        return ConfigError(f"unknown option {option!r}{nearest(option, names)}{more}")
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(map(repr, error.unused_tokens or ()))
        if verb == "generate":
            words += f": write --prompt {shlex.quote((error.unused_tokens or [''])[0])}"
        return ConfigError(f"unexpected {words}{more}")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        what = "needs a value" if name.startswith("-") else "is missing"
        return ConfigError(f"{name} {what}{more}")
    if isinstance(error, ValidationError) and error.argument is not None:
        name, value = error.argument.name, error.argument.tokens[0].value
        return ConfigError(f"{name}={value} {error.exception_message}{more}")
    text = (
        " ".join(str(error).split())
        .removesuffix(".")
        .replace(". ", "; ")
        .replace("Did you", "did you")
        .replace("Choose", "choose")
    )
    return ConfigError(f"{text[:1].lower()}{text[1:]}{more}")


def _unknown_verb(error: UnknownCommandError, verbs: Sequence[str]) -> str:
    word = next(iter(error.unused_tokens or error.root_input_tokens or ("",)))
    if word.endswith((".yaml", ".yml")):
        return f"unknown verb {word!r} (did you mean `jaxgen train {word}`?)"
    kind = "option" if word.startswith("-") else "verb"
    candidates = [name for name in verbs if name.startswith("-") == (kind == "option")]
    hint = nearest(word, candidates) or f"; there are {', '.join(candidates)}"
    return f"unknown {kind} {word!r}{hint}"
