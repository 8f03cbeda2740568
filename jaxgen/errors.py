"""Errors that a user can cause; each knows the exit code that the command line ends with.

A message is one line that says what, where, the value, and what to do about it.
"""

from pathlib import Path


class UserError(ValueError):
    """Base of every error whose cause is outside the program; `exit_code` is the process's."""

    exit_code = 2


class ConfigError(UserError):
    """A setting, flag or argument is wrong, or two of them contradict each other."""

    exit_code = 2


class MissingPackageError(ConfigError):
    """A package is not installed; the message names the extra of jaxgen that brings it."""


class ProofError(UserError):
    """A promise that `jaxgen verify` checks does not hold here."""

    exit_code = 1


class BusyError(UserError):
    """The environment refuses: a locked run folder, a read-only or vanished path, no device."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint, tokenizer or model file is missing, damaged, too new, or of another model."""

    exit_code = 4


class PeerError(UserError):
    """Another process of the same run is lost, stuck, or never came."""

    exit_code = 5


class NonFiniteError(UserError):
    """Numbers stopped being finite: a loss, a gradient, a parameter or a row of logits."""

    exit_code = 6


class DataError(UserError):
    """A corpus, record or token shard is missing, malformed, or not what was prepared."""

    exit_code = 7


PREEMPTED = 75  # the run was told to stop and has saved itself: start it again
BUG = 70  # our mistake: the traceback is in a file, the terminal gets one line
INTERRUPTED = 130  # a second Ctrl-C


def run_advice(folder: Path) -> str:
    """Return what makes a run of a folder that is there and is none."""
    files = {entry.name: entry.is_file() for entry in folder.iterdir()}
    if "config.yaml" in files:
        return f"`jaxgen train {folder}` trains it"
    if any(files.values()) and not files.keys() & {"checkpoints", "LOCK", "config.json"}:
        return f"`jaxgen train {folder}` trains on the text in it"
    return f"`jaxgen train CONFIG.yaml --out {folder}` makes one"


# Names of other libraries, and former ones of ours, by what they are called here.
CALLED_HERE = {
    "until": "early_stopping", "pick": "do_sample", "num_beams": "beams",
    "num_beam_groups": "groups", "diversity_penalty": "diversity", "n": "samples",
    "num_return_sequences": "samples",
    "penalty_alpha": "contrastive", "guidance_scale": "guidance", "max_time": "max_seconds",
    "stop_strings": "stop", "max_tokens": "max_new_tokens", "logprobs": "top_logprobs",
}  # fmt: skip


def nearest(
    word: str, known, label: str = "did you mean", prefix: str = "", *, cutoff: float = 0.6
) -> str:
    """Return " (did you mean 'x'?)" for the nearest of `known`, or "" when nothing is near.

    The word itself, which has been refused, is never the answer. cutoff: how near, from 0 to 1.
    """
    from difflib import get_close_matches

    names = [str(k) for k in known if f"{prefix}{k}" != word]
    bare = word.lstrip("-")
    ours = CALLED_HERE.get(bare.replace("-", "_"), "")
    ours = word.replace(bare, ours.replace("_", "-")) if word.startswith("-") else ours
    matches = [ours] if ours in names else get_close_matches(word, names, n=1, cutoff=cutoff)
    return f" ({label} {prefix + matches[0]!r}?)" if matches else ""
