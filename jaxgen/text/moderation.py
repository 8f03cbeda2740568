"""A policy at work on requests: what is read, what is drawn, and what is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from jaxgen.errors import ConfigError
from jaxgen.safety.policy import Classifier, Policy, read_policy
from jaxgen.safety.stream import Filter, RuleFilter, WindowFilter
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.text.tasks import scoring


def filters(policy: str | None, before: str = "") -> tuple[Filter, ...]:
    """Return what a text passes before it is shown; before: `safety.policy.text_before`."""
    if policy is None:
        return ()
    rules = read_policy(policy)
    shown: list[Filter] = [rules.text_filter(before)] if rules.text_rules else []
    for judge in rules.classifiers:
        if "during" in judge.when:
            shown.append(_window_filter(judge, judge.window))
        if "after" in judge.when:
            shown.append(_window_filter(judge, None))
    return tuple(shown)


def record(policy: str | Policy | None, filters: Sequence[Filter]) -> tuple[str, ...]:
    """Return the names of the rules that changed a text, and write them to the audit log."""
    if policy is None:
        return ()
    rules, names = read_policy(policy) if isinstance(policy, str) else policy, list[str]()
    for filter in filters:
        if isinstance(filter, RuleFilter):
            rules.record_matches(filter, "text")
            names += [rules.rule_of(match).name for match in filter.matches]
        elif filter.ended_by is not None:  # the name of a classifier
            rules.record(filter.ended_by, "stop", "text")
            names.append(filter.ended_by)
    return tuple(dict.fromkeys(names))


def check_prompt(path: str, prompt: str) -> None:
    """Raise ConfigError for a prompt that a rule or a classifier of a policy refuses."""
    policy = read_policy(path)
    refusing = (
        judge.name
        for judge in policy.classifiers
        if "before" in judge.when and _probability(judge)(prompt) >= judge.threshold
    )
    name = policy.prompt_rule(prompt) or next(refusing, None)
    if name is not None:
        policy.record(name, "refuse", "prompt")
        raise ConfigError(
            f"prompt is refused by the policy's rule {name!r}; ask for something else"
        )


def moderate(policy: Policy, texts: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return (text as it may be shown, names of the rules that acted) of each text.

    What may not be written is masked, too; a text that a rule ends is cut there; one that a
    classifier refuses is empty.
    """
    results = []
    for text in texts:
        filters: list[Filter] = [policy.mask_filter()] if policy.text_rules else []
        filters += [_window_filter(judge, None) for judge in policy.classifiers]
        for filter in filters:
            text = filter.push(text) + filter.flush()
        results.append((text, record(policy, filters)))
    return results


def _window_filter(judge: Classifier, window: int | None) -> WindowFilter:
    return WindowFilter(judge.name, _probability(judge), judge.threshold, window)


def _probability(judge: Classifier) -> Callable[[str], float]:
    """Return the probability of a classifier's label for a text; opens its model."""
    model = _opened(judge.model)
    if judge.label not in model.labels:
        raise ConfigError(
            f"classifier {judge.name!r}: {judge.model} has no label {judge.label!r}; it has "
            f"{', '.join(model.labels) or 'none'}"
        )

    def probability(text: str) -> float:
        if not text.strip():
            return 0.0
        (row,) = scoring.classify(model, [text], batch=1, overflow="cut")
        return dict(row)[judge.label]

    return probability


@lru_cache(maxsize=4)
def _opened(folder: str) -> LoadedModel:
    model = open_model(folder)
    if model.config.head != "classes":
        raise ConfigError(f"{folder} is no classifier; train one with the task classify")
    return model
