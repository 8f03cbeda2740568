"""Arguments of public functions and settings, checked against their own signatures.

`@checked(length=at_least(1))` compares what a caller passes with the annotations: types, choices,
dtypes, ranks, sizes that must agree (an axis letter has one size in a call), and with the ranges
given to it. A wrong argument is a ConfigError of one line: its name, the value and the remedy.

Numbers on the host are looked at, and arrays on a device that are small; larger ones are trusted,
for reading them would wait. Of traced values only dtype and shape are known. Nothing of a check is
in a compiled program.
"""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxgen import arrays, values
from jaxgen.errors import ConfigError
from jaxgen.values import Source

F = TypeVar("F", bound=Callable[..., Any])
Rule = Callable[[str, Any, "Call"], None]  # (name, value, call), which raises ConfigError


class Call(Source):
    """A call while its arguments are read: all that were given, and the sizes of their axes."""

    def __init__(self, given: dict[str, Any]):
        super().__init__()
        self.given = given

    def read(self, hint: Any, value: Any, path: str) -> Any:
        """Return a value as its annotation says, which may take arrays."""
        wanted = hint if isinstance(hint, arrays.Arrays) else arrays.arrays_of(hint)
        if wanted is None:
            return values.read_value(hint, value, path, self)
        return arrays.read_arrays(wanted, value, path, self)

    def size(self, letter: str) -> Any:
        """Return the size of an axis, as arrays or the `config` have it; None if unknown."""
        if letter in self.sizes:
            return self.sizes[letter][0]
        return getattr(self.given.get("config"), letter, None)


@dataclass(frozen=True)
class Range:
    """The numbers that an argument may hold: from `low` (or above it) to `high` (or below it).

    high: a number, or the axis letter whose size it is ("V" is the config's). also: further numbers
    that are taken, such as a padding. real: the argument that says which of them count, as
    lengths [B] or as segments that are not 0. note: a word on a special number.
    """

    low: float | int = -math.inf
    high: float | int | str = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False
    also: tuple[int, ...] = ()
    real: str | None = None
    note: str = ""

    def __call__(self, path: str, value: Any, call: Call) -> None:
        """Raise ConfigError unless all numbers that are known here are in range."""
        limit = call.size(self.high) if isinstance(self.high, str) else self.high
        if not isinstance(limit, int | float):
            return
        if isinstance(value, int | float) and math.isfinite(value) and self._holds(value, limit):
            return  # most settings, of which NumPy need not be imported
        import numpy as np

        numbers = arrays.concrete(value)
        if numbers is None or not numbers.size:
            return
        good = self._holds(numbers, limit)
        if not self.infinite and numbers.dtype.kind == "f":
            good &= np.isfinite(numbers)
        for one in self.also:
            good |= numbers == one
        if not good.all():
            good |= ~self._counted(numbers, call)
        if not good.all():
            position = (
                [int(i) for i in np.argwhere(~np.atleast_1d(good))[0]] if numbers.ndim else ""
            )
            bad = numbers[tuple(position)]
            odd = numbers.dtype.kind == "f" and not np.isfinite(bad)
            finite = "finite and " * (odd and not self.infinite)
            said = f"{path}{position}={bad} must be {finite}{self.words(limit)}"
            raise ConfigError(said.removesuffix(" and "))

    def _holds(self, numbers: Any, limit: float | int) -> Any:
        """Return which numbers are between both ends."""
        good = numbers > self.low if self.above else numbers >= self.low
        return good & (numbers < limit if self.below else numbers <= limit)

    def _counted(self, numbers: Any, call: Call) -> Any:
        """Return which numbers of [B, T] count; none where that is not known here."""
        import numpy as np

        marks = call.given.get(self.real or "")
        if marks is None:
            return np.ones(numbers.shape, bool)
        marks = arrays.concrete(marks)
        if marks is None:
            return np.zeros(numbers.shape, bool)
        return np.arange(numbers.shape[1]) < marks[:, None] if marks.ndim == 1 else marks > 0

    def words(self, limit: float | int) -> str:
        """Return the range as a message says it."""
        name = {"V": f"vocab_size={limit}", "T": f"the width {limit}"}.get(str(self.high), limit)
        parts = []
        if self.low > -math.inf:
            parts.append(f"greater than {self.low}" if self.above else f"at least {self.low}")
        if limit < math.inf:
            parts.append(f"less than {name}" if self.below else f"at most {name}")
        said = " and ".join(parts)
        return f"{said}; {self.note}" if self.note else said


def at_least(low: float | int, **more: Any) -> Range:
    """Return the range of the finite numbers from `low` on."""
    return Range(low, **more)


def above(low: float | int, **more: Any) -> Range:
    """Return the range of the finite numbers greater than `low`."""
    return Range(low, above=True, **more)


def between(low: float | int, high: float | int | str, **more: Any) -> Range:
    """Return the range from `low` to `high`, both in it."""
    return Range(low, high, **more)


def size(low: int) -> Rule:
    """Return the rule of an array's size: an integer from `low` on, or a symbol of `jax.export`."""

    def rule(path: str, value: Any, call: Call) -> None:
        symbol = type(value).__module__.partition(".")[0] == "jax" and not values.is_traced(value)
        if not symbol:
            at_least(low)(path, call.read(int, value, path), call)

    return rule


def token_ids(**more: Any) -> Range:
    """Return the range of the ids of the config's vocabulary."""
    return Range(0, "V", below=True, **more)


@typing.overload
def checked(function: F, /) -> F: ...
@typing.overload
def checked(**rules: Rule) -> Callable[[F], F]: ...
def checked(function: Any = None, /, **rules: Rule) -> Any:
    """Decorate a function, or a dataclass above `@dataclass`, so that its arguments are checked.

    rules: by argument, what else must hold: a Range, or any (name, value, call) that raises a
    ConfigError; where the argument is None they are not asked. Where arrays are wanted nested lists
    are taken as well, and integers of all types become int32.
    """
    if function is None:
        return functools.partial(checked, **rules)
    if isinstance(function, type):
        function.__init__ = _guarded(function.__init__, function, rules)
        return function
    return _guarded(function, function, rules)


def renamed(read: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[type], Any]:
    """Decorate a class, above `checked`, whose constructor takes settings by older names as well.

    read: from the keyword arguments as given to those of today.
    """

    def decorate(cls: Any) -> Any:
        make = cls.__init__

        @functools.wraps(make)
        def call(self: Any, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **read(kwargs))

        cls.__init__ = call
        return cls

    return decorate


def _guarded(function: F, hinted: Any, rules: Mapping[str, Rule]) -> F:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            args, kwargs = _signature(function, hinted).read(args, kwargs, rules)
        except ConfigError as error:
            if hinted is not function:  # a class, whose fields a config names as well
                raise
            raise ConfigError(f"{function.__name__}: {error}") from None
        return function(*args, **kwargs)

    return typing.cast(F, call)


@functools.cache
def _signature(function: Any, hinted: Any) -> _Signature:
    # Annotations are resolved at the first call: before it, their modules need not be loaded.
    hints = typing.get_type_hints(hinted, include_extras=True)
    listed = inspect.signature(function).parameters.values()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = {p.name: hints.get(p.name, Any) for p in listed}
    return _Signature(
        places=tuple(p.name for p in listed if p.kind in by_place),
        rest=next((p.name for p in listed if p.kind is p.VAR_POSITIONAL), None),
        wanted={name: arrays.arrays_of(hint) or hint for name, hint in wanted.items()},
        defaults={p.name: p.default for p in listed},
    )


class _Signature(typing.NamedTuple):
    """What a function wants of each argument."""

    places: tuple[str, ...]
    rest: str | None
    wanted: dict[str, Any]
    defaults: dict[str, Any]

    def read(
        self, args: tuple, kwargs: dict[str, Any], rules: Mapping[str, Rule]
    ) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments as they are passed on; ConfigError for one that is wrong."""
        given = dict(zip(self.places, args, strict=False))
        if given.keys() & kwargs.keys():
            return args, kwargs  # the call itself is wrong, as Python will say
        call = Call(given | kwargs)
        for name, wanted in self.wanted.items():
            if name in call.given and call.given[name] is not self.defaults[name]:
                call.given[name] = self._one(wanted, name, call, rules.get(name))
        more = args[len(self.places) :]
        if self.rest is not None:
            wanted, rule = self.wanted[self.rest], rules.get(self.rest)
            read = []
            for i, value in enumerate(more):
                name = f"{self.rest}[{i}]"
                call.given[name] = value
                read.append(self._one(wanted, name, call, rule))
            more = tuple(read)
        args = (*(call.given[name] for name in given), *more)
        return args, {name: call.given[name] for name in kwargs}

    def _one(self, wanted: Any, name: str, call: Call, rule: Rule | None) -> Any:
        value = call.given[name]
        if wanted is Any and rule is None:
            return value
        value = call.read(wanted, value, name)
        if value is None:
            return value
        if rule is not None:
            rule(name, value, call)
        if isinstance(wanted, arrays.Arrays):
            return arrays.as_int32(value, name) if wanted.integer else value
        arrays.agree(value, name, call)
        return value
