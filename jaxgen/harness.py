"""A jaxgen model under EleutherAI's lm-evaluation-harness, as the model "jaxgen".

    python -m jaxgen.harness run --model jaxgen --model_args path=runs/quickstart \\
        --include_path my_tasks --tasks my_task

is the harness's own command line with this model known to it; from Python, import this module and
call `lm_eval.simple_evaluate(model="jaxgen", model_args={"path": ...}, ...)`. Texts are tokenized
and windows cut as the harness's "hf" does it, so that figures compare. Needs the extra [lm-eval].
"""

from __future__ import annotations

from typing import Any

from jaxgen.errors import ConfigError, DataError
from jaxgen.text.request import Generation
from jaxgen.text.session import Session, open_session
from jaxgen.text.tasks import scoring

try:
    from lm_eval import utils  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ConfigError(
        'the harness is not installed; install it with pip install "jaxgen[lm-eval]"'
    ) from error

# generation_kwargs of a task and our names; the harness itself sets the first three.
GENERATION = {
    "until": "stop", "max_gen_toks": "max_new_tokens", "temperature": "temperature",
    "do_sample": None, "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}  # fmt: skip

UNASKED = "cuda:0"  # the default of the harness's command line


@register_model("jaxgen")
class Harness(TemplateLM):
    """A jaxgen decoder as a model of the harness, which requires its base class.

    path: a run, a saved or a Hugging Face folder with a tokenizer. batch_size: rows at once.
    max_gen_toks: new tokens where a task does not say. seed: of sampled texts.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int | str = 8,
        max_gen_toks: int = 256,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if device not in (None, UNASKED) or max_batch_size is not None:
            raise ConfigError(
                f"device={device}, max_batch_size={max_batch_size}: JAX takes the device that "
                f"JAX_PLATFORMS names, and a batch has batch_size rows; leave both out"
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size={batch_size} must be a whole number of at least 1")
        self.session: Session = open_session(path)
        if self.session.config.topology != "decoder" or self.session.config.head != "lm":
            raise ConfigError(f"{path} is no decoder with token logits; the harness needs one")
        self.batch_size, self.max_gen_toks, self.seed = int(batch_size), max_gen_toks, seed

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends a text; ConfigError for a tokenizer without one."""
        special = self.session.tokenizer.special
        token = special.bos if special.eos is None else special.eos
        if token is None:
            raise ConfigError("the tokenizer has neither bos nor eos to stand before a text")
        return token

    @property
    def prefix_token_id(self) -> int:
        """Return the id that begins a text without a context."""
        bos = self.session.tokenizer.special.bos
        return self.eot_token_id if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text, after bos if the tokenizer has one and it is not forbidden."""
        bos = self.session.tokenizer.special.bos
        ids = self.session.tokenizer.encode(string)
        return ids if bos is None or add_special_tokens is False else [bos, *ids]

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return (log p in nats, whether all are the likeliest) of each continuation."""
        width = self.session.config.context
        for texts, _, after in requests:
            if not 0 < len(after) <= width:
                raise DataError(
                    f"the continuation {'' if texts is None else texts[1]!r} has {len(after)} "
                    f"tokens, but the harness scores 1 to context={width} at once; correct the task"
                )
        rows = [(before, after) for _, before, after in requests]
        answers = scoring.score_continuations(self.session.model, rows, batch=self.batch_size)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p of whole texts, cut into windows of the context as the harness cuts them."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.session.config.context,
                context_len=1,
            )
            parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(logp for logp, _ in self._loglikelihood_tokens(parts)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return each text that follows a context, up to the first of its stop strings."""
        completions = [""] * len(requests)
        settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            settings.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in settings.values():
            for begin in range(0, len(numbers), self.batch_size):
                part = numbers[begin : begin + self.batch_size]
                args = requests[part[0]].args[1]
                texts = self._complete([requests[i].args[0] for i in part], args)
                for number, text in zip(part, texts, strict=True):
                    completions[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return completions

    def _complete(self, contexts: list[str], args: dict[str, Any]) -> list[str]:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(args, self.max_gen_toks))
        unknown = sorted(set(kwargs) - set(GENERATION))
        if unknown:
            raise ConfigError(
                f"generation_kwargs {', '.join(unknown)} are not known here; there are "
                f"{', '.join(sorted(GENERATION))}"
            )
        length = kwargs["max_gen_toks"]
        if length >= self.session.config.context:
            raise ConfigError(
                f"max_gen_toks={length} leaves no room for a prompt in "
                f"context={self.session.config.context}"
            )
        ours = {name: kwargs[key] for key, name in GENERATION.items() if name and key in kwargs}
        ours.setdefault("temperature", 1.0)  # as transformers has it where a task only says sample
        ours["stop"] = tuple(text for text in ours.get("stop") or () if text)
        settings = Generation(**ours, seed=self.seed)
        # As "hf" does: the last tokens that leave room for the new ones, bos cut off like any.
        room = self.session.config.context - length
        prompts = [tuple(self.tok_encode(text)[-room:]) for text in contexts]
        return self.session.complete(prompts, settings)


def main() -> None:
    """Run the harness's command line."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
