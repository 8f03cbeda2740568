"""Whisper beside transformers: frames, logits, and the ids and segments of whole sounds."""

import json
import os

import numpy as np
import pytest
import speech_model
from speech_model import hum

import jaxgen
from jaxgen.data.media import LogMel
from jaxgen.pretrained import hub_parity, hub_read
from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model
from jaxgen.text.tasks.transcription import Speech

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V = speech_model.STOP  # ids of text
SIZES = {"vocab_size": 61, "num_mel_bins": 8, "encoder_layers": 2, "decoder_layers": 3}
SIZES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 24}
SIZES |= {"decoder_ffn_dim": 40, "d_model": 16, "max_source_positions": 50}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
CASES = {
    "plain": {},
    "relu": {"activation_function": "relu", "max_source_positions": 40},
    "untied": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("name", CASES)
def test_tiny_models_are_computed_alike_and_read_back(name, tmp_path):
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**SIZES | IDS | {"max_target_positions": 32} | CASES[name])
    theirs = transformers.WhisperForConditionalGeneration(config)
    for parameter in theirs.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    theirs.generation_config = transformers.GenerationConfig(**IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, params = jaxgen.load(tmp_path / "theirs")
    hub_parity.compare(tmp_path / "theirs", ours, params)  # raises beyond 1e-4
    jaxgen.save(tmp_path / "ours", ours, params, layout="hf")
    assert hub_read.read_config(tmp_path / "ours")[0].model_type == "whisper"
    again = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "ours")
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.7, 31.0])
def test_frames_are_those_of_the_feature_extractor(bins, seconds):
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    sound = hum(seconds)
    padded = np.pad(sound, (0, max(0, 480_000 - len(sound))))
    theirs = extractor._np_extract_fbank_features(padded[None], "cpu")[0].T
    ours = LogMel(feature_size=bins)(sound)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # The float32 of torch, which it takes where it is installed, is farther from its own numpy.
    given = extractor(padded, sampling_rate=16000, return_tensors="np", truncation=False)
    np.testing.assert_allclose(ours, given.input_features[0].T, atol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return speech_model.write(tmp_path_factory.mktemp("whisper") / "model")


def without(ids):
    """Return the ids of a segment without the end of the text, and the begin of the next one."""
    ids = [i for i in ids.tolist() if i != speech_model.STOP]
    return tuple(ids[:-1] if min(ids[-2:]) >= speech_model.TIMES else ids)


def theirs(folder, sounds, **how):
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    about = json.loads((folder / "preprocessor_config.json").read_text())
    extractor = transformers.WhisperFeatureExtractor(**about)
    long = {"truncation": False, "padding": "longest", "return_attention_mask": True}
    for sound in sounds:
        frames = extractor(sound, sampling_rate=16000, return_tensors="pt", **long)
        yield model.generate(
            frames.input_features, attention_mask=frames.attention_mask, return_timestamps=True,
            return_segments=True, return_dict_in_generate=True, do_sample=False, **how,
        )["segments"][0]  # fmt: skip


@pytest.mark.parametrize(
    "how", [{"language": "de"}, {"language": "en", "task": "translate"}, {"task": "transcribe"}]
)
def test_long_sounds_have_the_segments_and_ids_of_transformers(folder, how):
    sounds = [hum(3.3), hum(2.4, seed=1)]
    plain = Speech(temperatures=(0.0,), **how)
    model = open_model(folder)
    for ours, wanted in zip(
        tasks.transcribe(model, sounds, plain, batch=2),
        theirs(folder, sounds, **how),
        strict=True,
    ):
        texts = [model.tokenizer.decode([i for i in w["tokens"].tolist() if i < V]) for w in wanted]
        kept = [one for one, text in zip(wanted, texts, strict=True) if text.strip()]
        assert [one.tokens for one in ours.segments] == [without(one["tokens"]) for one in kept]
        np.testing.assert_allclose(
            [(one.start, one.end) for one in ours.segments],
            [(float(one["start"]), min(float(one["end"]), ours.duration)) for one in kept],
            atol=1e-3,
        )
