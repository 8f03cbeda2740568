"""Documents and an encoder, small and untrained."""

import jax

import jaxgen
from jaxgen.tokens.plain import Bytes

DOCS = {
    "birds.md": "# Birds\n\nA heron stands in the water. It eats fish! Does it sing? No.\n\n"
    "## Owls\n\nOwls hunt at night. “Hoo”, they say, über den Dächern 🦉.\n",
    "stones.txt": "Granite is hard.\r\nMarble is soft. Basalt comes out of volcanoes.",
    "deep/notes.jsonl": '{"text": "Trains leave at noon."}\n'
    '{"text": "Ferries leave at dusk. 渡し舟。"}\n',
}


def write_docs(home, docs=DOCS):
    for name, text in docs.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(text.encode())
    return home


def save_encoder(home, seed=0):
    config = jaxgen.ModelConfig(
        topology="encoder", head="none", vocab_size=259, context=128,
        layers=1, d_model=16, heads=2, positions="rope",
    )  # fmt: skip
    jaxgen.save(home, config, jaxgen.init(config, jax.random.key(seed)), tokenizer=Bytes())
    return home
