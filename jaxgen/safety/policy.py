"""A policy: the rules for texts in one YAML file, and the filters that it makes.

rules:
  - name: slurs
    words_file: words.txt          # or words: [...]
    action: forbid                 # never drawn; or mask (***), or stop (the text ends before)
  - name: internal
    regex: ['PRJ-[0-9]{4}']
    action: stop
    where: [prompt, text]
  - name: personal
    personal: [card, iban, email, phone, key]
    action: mask
classifiers:
  - {name: toxic, model: runs/toxic, label: toxic, threshold: 0.5, when: [before, during, after]}
audit: audit.jsonl
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxgen import arguments, files, settings, settings_yaml
from jaxgen.decoding.chain import Chain
from jaxgen.decoding.when import When
from jaxgen.errors import ConfigError
from jaxgen.safety import audit
from jaxgen.safety.expressions import Nfa, add_expression, add_words
from jaxgen.safety.folding import Fold
from jaxgen.safety.machine import Machine
from jaxgen.safety.personal import PATTERNS, Kind
from jaxgen.safety.stream import Match, RuleFilter
from jaxgen.safety.token_filter import Blocked, pieces_of

Action = Literal["forbid", "mask", "stop"]
Where = Literal["prompt", "text"]
Moment = Literal["before", "during", "after"]
BEFORE = 256  # tokens of a prompt that a match may begin in


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Rule:
    """What texts may not hold, and what becomes of it."""

    name: str = settings.option("what messages and the audit log call it", "")
    action: Action = settings.option(
        "forbid: never drawn; mask: shown as ***; stop: the text ends before it", "forbid"
    )
    words: tuple[str, ...] = settings.option(
        "words and phrases; letters with blanks or dots between them, as in s p a m, are others", ()
    )
    words_file: Path | None = settings.option("a file with one a line; # begins a comment", None)
    whole: bool = settings.option(
        "words match whole words alone, where a script has blanks between them", True
    )
    regex: tuple[str, ...] = settings.option("regular expressions, in the syntax of Python", ())
    personal: tuple[Kind, ...] = settings.option("personal data, told by their checksums", ())
    fold: Fold | None = settings.option(
        "full: case, accents, width, look-alikes, leetspeak; plain: width; none. By default full "
        "for words, plain for the rest; invisible characters count with none alone",
        None,
    )
    where: tuple[Where, ...] = settings.option("prompt: refuse such a prompt", ("text",))


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model of classes that reads texts; one above the threshold ends, or is refused."""

    name: str = settings.option("what messages and the audit log call it", "")
    model: str = settings.option("its folder, as the task `classify` trains it", "")
    label: str = settings.option("the class that is not wanted", "")
    threshold: float = settings.option("the least probability of it that counts", 0.5)
    when: tuple[Moment, ...] = settings.option(
        "before: of the prompt; during: of the last `window` characters; after: of all of it",
        ("after",),
    )
    window: int = settings.option("characters that are read at once, each half window", 200)


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Policy:
    """Rules for texts. Raises ConfigError for rules that can't be.

    Example:
      >>> from jaxgen.safety.policy import Policy, Rule
      >>> policy = Policy(rules=(Rule(name="x", words=("secret",), action="mask"),))
      >>> stream = policy.text_filter()
      >>> stream.push("a S3CR3T pl") + stream.push("an") + stream.flush()
      'a *** plan'
    """

    rules: tuple[Rule, ...] = settings.option("what texts may not hold", ())
    classifiers: tuple[Classifier, ...] = settings.option("models that judge texts", ())
    audit: Path | None = settings.option(
        "a file of prompts refused and texts changed, chained by hashes; of what is never drawn "
        "there is nothing to write",
        None,
    )
    audit_text: bool = settings.option("write what rules matched into it", False)

    def __post_init__(self) -> None:
        if not self.rules and not self.classifiers:
            raise ConfigError("rules=[] is empty; give at least one rule, or a classifier")
        names = [entry.name for entry in (*self.rules, *self.classifiers)]
        for name in names:
            if not name:
                raise ConfigError("a rule has no name; give each a name")
            if names.count(name) > 1:
                raise ConfigError(f"two rules are called {name!r}; rename one")
        for rule in self.rules:
            _check(rule)
        for judge in self.classifiers:
            _check_classifier(judge)
        if self.audit_text and self.audit is None:
            raise ConfigError("audit_text has no effect without audit; give audit: FILE.jsonl")
        assert self._machine is not None  # whose making checks the rules

    @property
    def text_rules(self) -> tuple[Rule, ...]:
        """Return the rules of texts that are made."""
        return tuple(rule for rule in self.rules if "text" in rule.where)

    @cached_property
    def _parts(self) -> tuple[tuple[int, Kind | None], ...]:
        """Return (the rule, the kind of personal data) of each part of the automaton."""
        return tuple(
            (number, kind)
            for number, rule in enumerate(self.rules)
            for kind in (rule.personal or (None,))
        )

    @cached_property
    def _machine(self) -> Machine:
        nfa = Nfa()
        for part, (number, kind) in enumerate(self._parts):
            _add(nfa, part, self.rules[number], kind)
        verified = (part for part, (_, kind) in enumerate(self._parts) if kind is not None)
        return Machine(nfa, frozenset(verified))

    def _filter(self, where: Where, ending: Sequence[Action], before: str = "") -> RuleFilter:
        rules = [self.rules[number] for number, _ in self._parts]
        ends = [rule.action in ending for rule in rules]
        checks = [
            _never if where not in rule.where else None if kind is None else PATTERNS[kind].check
            for rule, (_, kind) in zip(rules, self._parts, strict=True)
        ]
        return RuleFilter(self._machine, ends, checks, before)

    def text_filter(self, before: str = "") -> RuleFilter:
        """Return the filter of one text that is made; before: what it goes on from."""
        return self._filter("text", ("forbid", "stop"), before)

    def mask_filter(self) -> RuleFilter:
        """Return the filter of a text that is there: what it may not hold is masked."""
        return self._filter("text", ("stop",))

    def prompt_rule(self, prompt: str) -> str | None:
        """Return the name of a rule that refuses a prompt, or None."""
        if not any("prompt" in rule.where for rule in self.rules):
            return None
        stream = self._filter("prompt", get_args(Action))
        stream.push(prompt)
        stream.flush()
        return None if stream.ended_by is None else self.rule_of(stream.ended_by).name

    def rule_of(self, match: Match) -> Rule:
        """Return the rule of a match."""
        return self.rules[self._parts[match.rule][0]]

    def blocked(self, tokenizer: Any) -> tuple[Blocked, ...]:
        """Return the tables of what is never drawn, one for all words, and one a pattern.

        Raises ConfigError for rules that are too many for the tokenizer, or leave it no token.
        """
        return _blocked(
            tuple(rule for rule in self.text_rules if rule.action == "forbid"), tokenizer
        )

    def processor(
        self, tokenizer: Any, afters: Sequence[Sequence[int]], limits: Any, stops: Any
    ) -> When:
        """Return the logits processor that draws no blocked text.

        afters: the ids of the text that each request goes on from; limits: [B] new tokens at most;
        stops: [B, E] ids that end each. Raises ConfigError as `blocked` does.
        """
        befores = [text_before(tokenizer, after) for after in afters]
        parts = []
        for blocked in self.blocked(tokenizer):
            starts = np.asarray([blocked.start(before) for before in befores], np.int32)
            parts.append(blocked.processor(starts, np.asarray(limits, np.int32), stops))
        return When(np.asarray(True), Chain(tuple(parts)))

    def record(self, rule: str, action: str, place: str, **about: Any) -> None:
        """Add a line to the audit log, if there is one."""
        if self.audit is not None:
            audit.append(self.audit, {"rule": rule, "action": action, "place": place, **about})

    def record_matches(self, stream: RuleFilter, place: str) -> None:
        """Add a line for each match of a filter."""
        for match in stream.matches if self.audit is not None else ():
            rule, more = self.rule_of(match), {"text": match.text} if self.audit_text else {}
            span = [max(match.begin, 0), match.end]
            self.record(rule.name, rule.action, place, characters=span, **more)


def text_before(tokenizer: Any, prompt: Sequence[int]) -> str:
    """Return the end of the text that a request goes on from."""
    return tokenizer.decode(list(prompt)[-BEFORE:]) if len(prompt) else ""


def read_policy(path: str | os.PathLike) -> Policy:
    """Return the policy of a YAML file; paths in it are relative to it.

    Raises ConfigError that names the file and the key.
    """
    file = Path(path)
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        changed = 0
    return _read(file, changed)


@lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> Policy:
    home, keys = path.parent, settings_yaml.read_yaml(path, "policy")
    for key, file_key in (("rules", "words_file"), ("classifiers", "model")):
        entries = keys.get(key) or []
        if not isinstance(entries, list):
            raise ConfigError(f"{path}: {key} is a list; begin each of them with '- ', as in "
                              f"- name: x")  # fmt: skip
        keys[key] = [_resolve(entry, file_key, home) for entry in entries]
    try:
        return settings.build(Policy, _resolve(keys, "audit", home))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _resolve(entry: Any, key: str, home: Path) -> Any:
    """Return a mapping whose path is relative to a folder; a model that isn't there has a name."""
    name = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or (key == "model" and not (home / name).exists()):
        return entry
    return {**entry, key: str(home / name)}


def _check(rule: Rule) -> None:
    where = f"rule {rule.name!r}"
    if not (rule.words or rule.words_file or rule.regex or rule.personal):
        raise ConfigError(f"{where} is empty; give words, words_file, regex or personal")
    if not rule.where:
        raise ConfigError(f"{where}: where=[] is empty; give text, prompt, or both")
    if not rule.whole and not (rule.words or rule.words_file):
        raise ConfigError(f"{where}: whole=False has no effect without words; remove it")
    if rule.personal and rule.action == "forbid" and "text" in rule.where:
        raise ConfigError(f"{where}: action=forbid can't be of personal data, whose checksums are "
                          f"known at their end; give mask or stop")  # fmt: skip
    if rule.personal and (rule.words or rule.words_file or rule.regex):
        raise ConfigError(f"{where} has personal and others; make two rules of it")
    if rule.action == "mask" and "prompt" in rule.where:
        raise ConfigError(f"{where}: action=mask can't be of a prompt, which is refused or read; "
                          f"make a rule of its own with action: stop")  # fmt: skip


def _check_classifier(judge: Classifier) -> None:
    where = f"classifier {judge.name!r}"
    for key in ("model", "label"):
        if not getattr(judge, key):
            raise ConfigError(f"{where} has no {key}; give it")
    if not 0 < judge.threshold <= 1:
        raise ConfigError(f"{where}: threshold={judge.threshold} must be above 0, and at most 1")
    if judge.window < 2 or not judge.when:
        raise ConfigError(f"{where}: window={judge.window} must be at least 2, and when not empty")


def words_of(rule: Rule) -> tuple[str, ...]:
    """Return the words of a rule, with those of its file; ConfigError if that has none."""
    if rule.words_file is None:
        return rule.words
    try:
        lines = files.lines(rule.words_file.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"words_file={rule.words_file}: {reason}; correct the path") from None
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise ConfigError(f"words_file={rule.words_file} has no word; write one a line")
    return (*rule.words, *words)


def _add(nfa: Nfa, part: int, rule: Rule, kind: Kind | None) -> None:
    patterns = rule.regex if kind is None else (PATTERNS[kind].expression,)
    try:
        if kind is None and (words := words_of(rule)):
            add_words(nfa, part, words, rule.fold or "full", whole=rule.whole)
        for pattern in patterns:
            add_expression(nfa, part, pattern, rule.fold or "plain")
    except ConfigError as error:
        raise ConfigError(f"rule {rule.name!r}: {error}") from None


@lru_cache(maxsize=8)
def _blocked(rules: tuple[Rule, ...], tokenizer: Any) -> tuple[Blocked, ...]:
    if not rules:
        return ()
    # Patterns apart: side by side in one automaton their states would multiply.
    parts, words = [], Nfa()
    for rule in rules:
        if rule_words := words_of(rule):
            add_words(words, 0, rule_words, rule.fold or "full", whole=rule.whole)
        for pattern in rule.regex:
            parts.append(Nfa())
            add_expression(parts[-1], 0, pattern, rule.fold or "plain")
    parts = [words, *parts] if words.starts else parts
    label = f"rules {', '.join(rule.name for rule in rules)}"
    pieces = pieces_of(tokenizer)
    blocked = tuple(Blocked(part, pieces, label) for part in parts)
    first = np.logical_and.reduce([tables.first for tables in blocked])
    if not first[[bool(piece) for piece in pieces]].any():
        raise ConfigError(f"{label} leave no token to begin a text with; narrow them")
    return blocked


def _never(text: str) -> bool:
    return False
