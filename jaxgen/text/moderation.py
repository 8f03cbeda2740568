"""A policy at work on requests: what is read, what is drawn, and what is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from jaxgen.errors import ConfigError
from jaxgen.safety.policy import Classifier, Moment, Policy, read_policy
from jaxgen.safety.stream import Filter, RuleFilter, WindowFilter
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.text.tasks import scoring


def filters(policy: str | None, before: str = "") -> tuple[Filter, ...]:
    """Return what a text passes before it is shown; before: `safety.policy.text_before`."""
    if policy is None:
        return ()
    rules = read_policy(policy)
    shown: list[Filter] = [rules.text_filter(before)] if rules.texts else []
    for one in rules.classifiers:
        judge = _judge(one)
        if "during" in one.when:
            shown.append(WindowFilter(one.name, judge, one.threshold, one.window))
        if "after" in one.when:
            shown.append(WindowFilter(one.name, judge, one.threshold, None))
    return tuple(shown)


def acted(policy: str | None, passed: Sequence[Filter]) -> tuple[str, ...]:
    """Return the names of the rules that changed a text, and write them to the audit log."""
    if policy is None:
        return ()
    return _acted(read_policy(policy), passed)


def _acted(policy: Policy, passed: Sequence[Filter]) -> tuple[str, ...]:
    names: list[str] = []
    for one in passed:
        if isinstance(one, RuleFilter):
            policy.record_matches(one, "text")
            names += [policy.rule_of(match).name for match in one.matches]
        elif isinstance(one, WindowFilter) and one.found:
            policy.record(one.name, "stop", "text")
            names.append(one.name)
    return tuple(dict.fromkeys(names))


def check_prompt(path: str, prompt: str) -> None:
    """Raise ConfigError for a prompt that a rule or a classifier of a policy refuses."""
    policy = read_policy(path)
    name = policy.prompt_rule(prompt)
    if name is None:
        name = _refusing(policy, prompt, "before")
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
        passed: list[Filter] = [policy.masks()] if policy.texts else []
        for one in policy.classifiers:
            passed.append(WindowFilter(one.name, _judge(one), one.threshold, None))
        for one in passed:
            text = one.push(text) + one.flush()
        results.append((text, _acted(policy, passed)))
    return results


def _refusing(policy: Policy, text: str, moment: Moment) -> str | None:
    for one in policy.classifiers:
        if moment in one.when and _judge(one)(text) >= one.threshold:
            return one.name
    return None


def _judge(one: Classifier) -> Callable[[str], float]:
    """Return the probability of a classifier's label for a text; opens its model."""
    model = _opened(one.model)
    if one.label not in model.labels:
        raise ConfigError(
            f"classifier {one.name!r}: {one.model} has no label {one.label!r}; it has "
            f"{', '.join(model.labels) or 'none'}"
        )

    def judge(text: str) -> float:
        if not text.strip():
            return 0.0
        (row,) = scoring.classify(model, [text], batch=1, overflow="cut")
        return dict(row)[one.label]

    return judge


@lru_cache(maxsize=4)
def _opened(folder: str) -> LoadedModel:
    model = open_model(folder)
    if model.config.head != "classes":
        raise ConfigError(f"{folder} is no classifier; train one with the task classify")
    return model
