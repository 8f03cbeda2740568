"""`jaxgen train my.txt`: sizes by the text and the machine, by rules that anybody can check."""

import pytest

from jaxgen import tokens
from jaxgen.errors import DataError
from jaxgen.profile.chips import CHIPS, Chip
from jaxgen.run import forecast, sizes
from jaxgen.run.settings import build_settings
from jaxgen.tokens.pieces import VocabularySizeError

CPU = Chip("cpu", 1e11, 24e9, 1e11, 1e11, "cpu")
# (bytes of text, chip, devices) -> (pieces, layers, d_model, context)
CHOSEN = [
    (500, CPU, 1, (None, 2, 64, 64)),
    (100_000, CPU, 1, (512, 2, 64, 64)),
    (1_100_000, CPU, 1, (2048, 4, 128, 128)),
    (10_000_000, CPU, 1, (3072, 4, 192, 128)),
    (10**10, CPU, 1, (3072, 4, 192, 128)),
    (10_000_000, CHIPS["h200"], 1, (4096, 6, 256, 256)),
    (10**9, CHIPS["h200"], 1, (12288, 12, 768, 1024)),
    (10_000_000, CHIPS["v5e"], 4, (4096, 6, 256, 256)),
]


@pytest.mark.parametrize(("size", "chip", "count", "wanted"), CHOSEN)
def test_sizes_follow_the_text_and_the_machine_and_make_a_config_that_fits(
    size, chip, count, wanted
):
    choice = sizes.choose(size, chip, count)
    assert choice == sizes.choose(size, chip, count)
    model, train = choice.mapping["model"], choice.mapping["train"]
    pieces = choice.mapping["tokenizer"].get("vocab_size")
    assert (pieces, model["layers"], model["d_model"], model["context"]) == wanted
    assert model["compute_dtype"] == ("float32" if chip.platform == "cpu" else "bfloat16")
    assert train["batch"] % count == 0 and 100 <= train["steps"] <= 50_000
    assert choice.minutes <= 1.1 * sizes.MINUTES
    assert str(choice).count("\n") == 0 and f"{model['layers']} layers" in str(choice)
    built = build_settings(choice.mapping | {"model": model | {"vocab_size": pieces or 260}})
    assert forecast.plan_memory(built, chip, count).fits


def test_more_time_makes_a_longer_training_and_less_memory_a_smaller_model():
    size = 10**8
    short, long = (sizes.choose(size, CPU, 1, minutes) for minutes in (1.0, 60.0))
    assert short.minutes < 2 < long.minutes and (
        short.mapping["model"]["layers"] <= long.mapping["model"]["layers"]
    )
    large = sizes.choose(10**9, CHIPS["h200"], 1).mapping["model"]["d_model"]
    poor = Chip("small", 989e12, 1e9, 1e12, 1e12, "gpu")
    fitted = sizes.choose(10**9, poor, 1).mapping
    assert fitted["model"]["d_model"] < large or fitted["train"].get("accumulate", 1) > 1


def test_overrides_win_and_a_kind_takes_its_section(tmp_path):
    (tmp_path / "my.txt").write_text("once upon a time there was a text " * 1000)
    names = [str(tmp_path / "my.txt")]
    plain, _ = sizes.text_settings(names)
    assert plain.data.files == tuple(names) and plain.sample.prompts == ("once upon a time",)
    assert plain.tokenizer.vocab_size == 512
    words = ["tokenizer.kind=bytes", "train.steps=7", "model.layers=1", "sample.prompts=[Hi]"]
    changed, choice = sizes.text_settings(names, words)
    assert str(choice).endswith("but as given: " + " ".join(words))
    assert changed.tokenizer.kind == "bytes" and changed.train.steps == 7
    assert changed.model.layers == 1 and changed.sample.prompts == ("Hi",)
    preset, _ = sizes.text_settings(names, ["model.preset=gpt2-124m"])
    assert preset.model.d_model == 768
    (tmp_path / "void.txt").write_text("")
    with pytest.raises(DataError, match=r"void.txt: empty"):
        sizes.text_settings([str(tmp_path / "void.txt")])
    with pytest.raises(DataError, match="no file matches"):
        sizes.text_settings([str(tmp_path / "none.txt")])


def test_a_text_trains_at_once_answers_and_goes_on(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.md").write_text("the cat sat on the mat. " * 1500)  # has not 512 pieces
    fast = ["train.steps=2", "model.layers=1", "sample.max_new_tokens=2"]
    code, said = here("train", "my.md", *fast)
    assert code == 0 and "chosen for" in said and "pieces, which are taken" in said, said
    assert "few documents" in said and "jaxgen generate runs/my" in said, said
    code, said = here("train", "my.md", "train.steps=3")
    assert code == 0 and "resuming at step 2 of 3" in said, said


def test_a_text_of_many_characters_gets_the_pieces_that_they_need():
    text = "".join(chr(0x4E00 + i * 7 % 900) for i in range(9000))
    settings = build_settings({"tokenizer": {"vocab_size": 512}})
    with pytest.raises(VocabularySizeError) as caught:
        tokens.train(settings.tokenizer, [text])
    found = sizes.with_pieces(settings, caught.value.works)
    assert found.tokenizer.vocab_size > 900
    assert tokens.train(found.tokenizer, [text]).vocab_size == found.tokenizer.vocab_size


def test_a_bad_file_is_left_out_of_the_sizing_and_prompts_fit_the_context(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 one two three")
    (tmp_path / "b.txt").write_text("漢字" * 200)
    with pytest.raises(DataError, match="iconv"):
        sizes.text_settings([str(tmp_path)])
    words = ["data.on_bad_record=skip", "model.context=16", "sample.max_new_tokens=4"]
    settings, _ = sizes.text_settings([str(tmp_path)], words)
    assert settings.sample.prompts == ("漢字",)  # 6 of 8 bytes
    short = sizes.choose(40, CPU, 1).mapping["model"]["context"]
    assert short < 0.9 * 40 and short >= sizes.SHORTEST
