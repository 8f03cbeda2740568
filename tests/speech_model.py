"""A tiny Whisper in a Hugging Face folder: windows of one second, 51 timestamps, two languages."""

import json

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import jaxgen

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"]
SPECIAL += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
SPECIAL += ["<|notimestamps|>"]
STOP, START, EN, DE, TRANSLATE, TRANSCRIBE = range(256, 262)
TIMES, STEPS = 256 + len(SPECIAL), 51
V = TIMES + STEPS
STEM = jaxgen.Stem(channels=80, size=50)
CONFIG = jaxgen.ModelConfig(
    vocab_size=V, context=24, layers=2, d_model=16, heads=2, d_ff=24, feed="gelu",
    topology="encoder_decoder", biases="no_keys", stem=STEM, init_std=0.3,
)  # fmt: skip
GENERATION = {
    "bos_token_id": STOP, "eos_token_id": STOP, "pad_token_id": STOP, "is_multilingual": True,
    "decoder_start_token_id": START, "max_length": 24, "no_timestamps_token_id": TIMES - 1,
    "lang_to_id": {"<|en|>": EN, "<|de|>": DE}, "max_initial_timestamp_index": 10,
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE}, "return_timestamps": False,
    "suppress_tokens": [1, 2, 100, *range(STOP + 1, TIMES - 1)],
    "begin_suppress_tokens": [32, STOP], "alignment_heads": [[0, 1]],
    "prev_sot_token_id": TIMES - 3,
}  # fmt: skip


def params(seed=0):
    """Return parameters whose texts are of many tokens, biases and norms drawn as well."""
    drawn = jaxgen.init(CONFIG, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(drawn)
    noise = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [np.asarray(x + 0.05 * noise.standard_normal(x.shape), np.float32) for x in leaves]
    )


def tokenizer():
    """Return a tokenizer of single bytes with Whisper's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return engine


def write(folder, seed=0):
    """Write the folder as transformers lays it out; return it."""
    jaxgen.save(folder, CONFIG, params(seed), layout="hf", family="whisper")
    tokenizer().save(str(folder / "tokenizer.json"))
    about = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), SPECIAL[0])
    about |= {"tokenizer_class": "WhisperTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def hum(seconds, *, rate=16000, seed=0):
    """Return samples of a few tones under noise."""
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time * (1 + 0.1 * time)) for f in (220, 550, 1400))
    noise = np.random.default_rng(seed).standard_normal(time.size)
    return (0.1 * tones + 0.02 * noise).astype(np.float32)
