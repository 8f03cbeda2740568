"""Settings: YAML to frozen dataclasses and back; every mistake is one ConfigError that helps."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jaxgen import settings, settings_yaml
from jaxgen.errors import ConfigError


@dataclass(frozen=True)
class Model:
    norm: Literal["layer", "rms"] = "rms"
    width: int = 64
    heads: int = 4
    dropout: float = 0.0
    window: int | None = None
    pattern: tuple[Literal["local", "global"], ...] = ("local", "global")
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self):
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")


@dataclass(frozen=True)
class Train:
    steps: int = field(default=100, metadata={"help": "updates in all"})
    learning_rate: float = 3e-4
    resume: bool = True
    note: str | None = None


@dataclass(frozen=True)
class Config:
    name: str
    model: Model = Model()
    train: Train = field(default_factory=lambda: Train(steps=7))
    data: Path = Path("corpus.txt")
    weights: dict[str, float] = field(default_factory=dict)


texts = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["no", "1e-3", "1:30", "~", "", " a", "2024-01-01", "<<", "=", "0x1f", "1_000", "0777", ".inf"]
)
floats = st.floats(allow_nan=False, allow_infinity=False)
configs = st.builds(
    Config,
    name=texts,
    model=st.builds(
        Model,
        norm=st.sampled_from(["layer", "rms"]),
        heads=st.sampled_from([1, 2, 4]),
        dropout=floats,
        window=st.none() | st.integers(),
        pattern=st.lists(st.sampled_from(["local", "global"]), max_size=4).map(tuple),
        betas=st.tuples(floats, floats),
    ),
    train=st.builds(
        Train,
        steps=st.integers(),
        learning_rate=floats,
        resume=st.booleans(),
        note=st.none() | texts,
    ),
    data=st.just(Path("a b/c")),
    weights=st.dictionaries(texts, floats, max_size=3),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def write(folder: Path, content: str | bytes, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@given(configs)
@hypothesis_settings(max_examples=200, deadline=None)
def test_a_dumped_config_loads_as_an_equal_one(config):
    text = settings.dump(config)
    text.encode()  # a config must fit in a file
    again = settings.build(Config, settings_yaml.parse(text, name="dump"))
    assert again == config
    assert settings.diff(config, again) == []


@given(configs, st.sampled_from([row[0] for row in settings.fields_help(Config)] + ["x"]), values)
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_random_edit_is_a_valid_config_or_a_config_error(config, key, value):
    *sections, leaf = key.split(".")
    edited = section = settings.as_dict(config)
    for name in sections:
        section = section[name]
    section[leaf] = value
    try:
        result = settings.build(Config, edited)
    except ConfigError as error:
        assert str(error)
    else:
        assert settings.build(Config, settings.as_dict(result)) == result


@given(st.text(max_size=60) | st.binary(max_size=60))
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_text_is_a_value_or_a_config_error(content):
    if isinstance(content, bytes):
        content = content.decode("latin-1")
    try:
        settings_yaml.parse(content, name="text")
    except ConfigError as error:
        assert "\n" not in str(error)


def test_floats_and_words_read_as_yaml_1_2(tmp_path):
    text = "rate: 1e-3\nname: no\nswitch: off\nclock: 1:30\nday: 2024-01-01\noctal: 012\nyes: on"
    expected = {
        "rate": 1e-3,
        "name": "no",
        "switch": "off",
        "clock": "1:30",
        "day": "2024-01-01",
        "octal": 12,
        "yes": "on",
    }
    assert settings_yaml.read_yaml(write(tmp_path, text)) == expected


def test_a_byte_order_mark_is_no_error(tmp_path):
    assert settings_yaml.read_yaml(write(tmp_path, b"\xef\xbb\xbfname: a")) == {"name": "a"}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "twice": ("train:\n  steps: 1\n  steps: 2\n", "c.yaml:3:3: key 'steps' is written twice"),
    "tab": ("train:\n\tsteps: 1\n", "c.yaml:2:1: .*spaces, not tabs"),
    "indent": ("a: 1\n  b: 2\n", "c.yaml:2:4: mapping values"),
    "python": ("a: !!python/object/apply:os.system [ls]\n", "c.yaml:1:4: tag '!!python/object"),
    "custom tag": ("a: !thing 3\n", "tag '!thing' is not read"),
    "bomb": (BOMB, "more than 100000 values"),
    "recursive": ("a: &a [*a]\n", "deeper than 40"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, "deeper than 40"),
    "empty": ("", "is empty; write"),
    "comments": ("# only\n", "holds only comments"),
    "list": ("- a\n- b\n", "the top must be `key: value` lines"),
    "two documents": ("a: 1\n---\nb: 2\n", "expected a single document"),
    "number key": ("1: a\n", "c.yaml:1:1: key 1 is not text; quote it"),
    "list key": ("? [a]\n: b\n", "key .* is not text"),
    "nul": ("a: 1\nb: \0\n", r"c.yaml:2: character U\+0000"),
    "utf-16": ("a: 1".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "latin-1": ("a: 1\nb: é\n".encode("latin-1"), r"c.yaml:2: byte 8 \(0xe9\) is not UTF-8"),
    "huge": (b"# padding\n" * 110_000, "larger than 1048576 bytes"),
    "long number": ("a: " + "9" * 5000, "5000 digits is too long"),
    "bad int tag": ("a: !!int x\n", "'x' is not a YAML int"),
    "bad escape": ('a: "\\UFFFFFFFF"\n', "c.yaml"),
    "unclosed": ("a: [1, 2\n", "c.yaml:2:1: .*parsing a flow sequence"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_file_is_refused_with_its_place(case, tmp_path):
    content, expected = FILES[case]
    message = refusal(settings_yaml.read_yaml, write(tmp_path, content))
    import re

    assert re.search(expected, message), message


def test_a_missing_file_suggests_its_sibling(tmp_path):
    write(tmp_path, "a: 1", "quickstart.yaml")
    write(tmp_path, "a: 1", "debug.yaml")
    message = refusal(settings_yaml.read_yaml, tmp_path / "quikstart.yaml")
    assert "did you mean" in message and str(tmp_path / "quickstart.yaml") in message
    assert "debug.yaml" in refusal(settings_yaml.read_yaml, tmp_path / "zzz")


def test_a_missing_file_is_looked_for_in_configs(tmp_path):
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", "a: 1", "quickstart.yaml")
    message = refusal(settings_yaml.read_yaml, tmp_path / "quickstart.yaml")
    assert str(tmp_path / "configs" / "quickstart.yaml") in message


def test_a_folder_is_refused_with_what_it_holds(tmp_path):
    write(tmp_path, "a: 1", "debug.yaml")
    assert "debug.yaml" in refusal(settings_yaml.read_yaml, tmp_path)


def test_unreadable_paths_are_config_errors(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "cannot read" in refusal(settings_yaml.read_yaml, loop)
    assert "cannot read" in refusal(settings_yaml.read_yaml, write(tmp_path, "a: 1") / "below.yaml")
    assert "cannot read" in refusal(settings_yaml.read_yaml, Path("a\0b"))


GOOD = {"name": "n"}
EDITS = {
    "unknown": ({"name": "n", "trian": {}}, "unknown key 'trian' (did you mean 'train'?)"),
    "nested": ({"train": {"step": 1}}, "unknown key 'train.step' (did you mean 'train.steps'?)"),
    "wrong section": (
        {"model": {"learning_rate": 1.0}},
        "unknown key 'model.learning_rate' (did you mean 'train.learning_rate'?)",
    ),
    "nothing near": ({"train": {"qqq": 1}}, "the keys here are steps, learning_rate"),
    "number in quotes": (
        {"train": {"learning_rate": "0.001"}},
        "train.learning_rate='0.001' is a string; write 0.001",
    ),
    "half a number": ({"train": {"learning_rate": "1e-3x"}}, "is a string; it wants a number"),
    "nan": ({"train": {"learning_rate": math.nan}}, "train.learning_rate=nan is not finite"),
    "inf": ({"train": {"learning_rate": -math.inf}}, "train.learning_rate=-inf is not finite"),
    "too large": ({"train": {"learning_rate": 10**400}}, "is not finite"),
    "bool as float": ({"train": {"learning_rate": True}}, "=true is a boolean; it wants a number"),
    "bool as int": ({"train": {"steps": True}}, "train.steps=true is a boolean"),
    "float as int": ({"train": {"steps": 1.0}}, "train.steps=1.0 is a number; write the integer 1"),
    "fraction as int": ({"train": {"steps": 1.5}}, "train.steps=1.5 is a number; it wants an int"),
    "huge float": ({"train": {"steps": 1e30}}, "train.steps=1e+30 is a number; it wants an int"),
    "separators": ({"train": {"steps": "1_000"}}, "train.steps='1_000' is a string; write 1000"),
    "null": ({"train": {"steps": None}}, "train.steps=null is null; it wants an integer"),
    "yes": ({"train": {"resume": "yes"}}, "train.resume='yes' is a string; write true"),
    "choice": (
        {"model": {"norm": "rsm"}},
        "model.norm='rsm' is not one of layer, rms (did you mean 'rms'?)",
    ),
    "item": ({"model": {"pattern": ["local", "globl"]}}, "model.pattern[1]='globl'"),
    "no list": ({"model": {"pattern": "local"}}, "it wants a list of local | global"),
    "wrong count": ({"model": {"betas": [0.9]}}, "has 1 items; it wants 2"),
    "string": ({"name": 123}, "name=123 is an integer; quote it to make it a string: '123'"),
    "section": ({"train": 3}, "train=3 is an integer; it wants keys and values"),
    "missing": ({"name": ...}, "name is missing and has no default; it wants str"),
    "own check": ({"model": {"heads": 3}}, "model: heads=3 does not divide width=64"),
    "optional": ({"model": {"window": "x"}}, "model.window='x' is a string; it wants an integer"),
    "table": ({"weights": {"a": "b"}}, "weights.a='b' is a string; it wants a number"),
    "path": ({"data": 3}, "data=3 is an integer; it wants a path"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_wrong_key_or_value_is_named_with_its_remedy(case):
    edit, expected = EDITS[case]
    mapping = {key: value for key, value in {**GOOD, **edit}.items() if value is not ...}
    assert expected in refusal(settings.build, Config, mapping)


def test_an_empty_section_means_the_defaults():
    assert settings.build(Config, {"name": "n", "model": None}).model == Model()


def test_one_string_stands_for_a_list_of_it():
    from jaxgen.data import DataSettings

    wanted = DataSettings(files=("a.txt",))
    assert settings.build(DataSettings, {"files": "a.txt"}) == wanted == DataSettings(files="a.txt")
    with pytest.raises(ConfigError, match=r"data\.files=3"):
        settings.build(DataSettings, {"files": 3}, "data")


def test_integers_are_accepted_for_floats_only():
    config = settings.build(Config, {"name": "n", "train": {"learning_rate": 1}})
    assert config.train.learning_rate == 1.0 and type(config.train.learning_rate) is float


def test_an_unknown_type_in_a_settings_class_is_our_own_mistake():
    cls = dataclasses.make_dataclass("Bad", [("x", bytes)], frozen=True)
    with pytest.raises(TypeError, match="cannot hold"):
        settings.build(cls, {"x": 1})


def test_a_union_keeps_the_type_that_was_written():
    cls = dataclasses.make_dataclass("Either", [("x", float | int | str)], frozen=True)
    assert [type(settings.build(cls, {"x": x}).x) for x in (1, 1.5, "a")] == [int, float, str]
    assert "float or int or str" in refusal(settings.build, cls, {"x": [1]})


def test_overrides_reach_any_depth_and_leave_the_original_alone():
    before = {"train": {"steps": 1}, "model": None}
    after = settings.override(
        before,
        ["train.steps=100", "train.note=off", "model.betas=[0.5, 1e-3]", "a.b.c={d: true}"],
    )
    assert before == {"train": {"steps": 1}, "model": None}
    assert after["train"] == {"steps": 100, "note": "off"}
    assert after["model"] == {"betas": [0.5, 1e-3]}
    assert after["a"] == {"b": {"c": {"d": True}}}
    assert settings.override({}, ["a=1", "a=2"]) == {"a": 2}
    assert settings.override({}, ["a=b=c"]) == {"a": "b=c"}


OVERRIDES = {
    "a.b": "has no value; write KEY=VALUE, as in train.steps=100",
    "=3": "has no key",
    "a..b=3": "has no key",
    "a.b=": "is empty; write a.b=null or a.b=''",
    "train.steps.x=1": "'steps' is 1, not a section",
    "a=[1,": "override 'a=[1,':1:4: while parsing a flow",
    "a={b: 1, b: 2}": "key 'b' is written twice",
}


@pytest.mark.parametrize("assignment", OVERRIDES)
def test_a_malformed_override_is_refused(assignment):
    mapping = {"train": {"steps": 1}}
    assert OVERRIDES[assignment] in refusal(settings.override, mapping, [assignment])


def test_difference_names_dotted_keys_and_both_values():
    a = Config("n", weights={"x": 1.0})
    b = Config("n", model=Model(heads=2), train=Train(steps=7, note="z"))
    assert settings.diff(a, b) == [
        ("model.heads", 4, 2),
        ("train.note", None, "z"),
        ("weights.x", 1.0, None),
    ]


def test_help_lists_each_leaf_with_type_default_and_words():
    rows = {row[0]: row[1:] for row in settings.fields_help(Config)}
    assert rows["name"] == ("str", "required", "")
    assert rows["train.steps"] == ("int", 7, "updates in all")
    assert rows["model.norm"] == ("layer | rms", "rms", "")
    assert rows["model.window"] == ("int | null", None, "")
    assert rows["model.pattern"][0] == "list of local | global"


def test_a_dump_reads_as_a_person_would_write_it():
    text = settings.dump(Config("no", train=Train(learning_rate=1e-5)))
    assert "name: 'no'\n" in text
    assert "  learning_rate: 1.0e-05\n" in text
    assert "  pattern: [local, global]\n" in text
    assert text.index("model:") < text.index("train:") < text.index("data:")
