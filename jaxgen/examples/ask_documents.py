"""Answers from your own documents: an index, a search, an answer whose citations can be checked.

`python ask_documents.py MODEL "question" docs/`, with a chat model for answers worth reading.
Without arguments a small untrained model is made: its words mean nothing, so that nothing is cited.
"""

import argparse
import tempfile
from pathlib import Path

import jax

import jaxgen
from jaxgen import knowledge
from jaxgen.tokens import TokenizerSettings, train

NOTES = """# Herons

A heron stands in shallow water. It waits for fish, and strikes in a tenth of a second.

# Owls

Owls hunt at night. Their feathers make no noise.
"""


def small_model(folder: Path) -> Path:
    """Write a small decoder that reads bytes, its weights as initialised."""
    config = jaxgen.ModelConfig(vocab_size=259, context=1024, layers=1, d_model=32, heads=2)
    tokenizer = train(TokenizerSettings(kind="bytes"), [])
    jaxgen.save(folder, config, jaxgen.init(config, jax.random.key(0)), tokenizer=tokenizer)
    return folder


def main() -> None:
    home = tempfile.TemporaryDirectory()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a run, or the folder of a chat model")
    parser.add_argument("question", nargs="?", default="What does a heron wait for?")
    parser.add_argument("documents", nargs="*", help="files or folders of text")
    args = parser.parse_args()
    (notes := Path(home.name) / "notes.md").write_text(NOTES, encoding="utf-8")

    built = knowledge.build(args.documents or [notes], Path(home.name) / "index", size=200)
    index = knowledge.open_index(Path(home.name) / "index")
    print(f"{built.documents} documents in {built.passages} passages")
    for hit in index.search(args.question, 2):
        print(f"{hit.score:.2f}  {Path(hit.document).name}:{hit.start}-{hit.end}")

    session = jaxgen.open(args.model or small_model(Path(home.name) / "model"))
    said = knowledge.ask(session, index, args.question, max_new_tokens=24, temperature=0.0)
    print("answer:", repr(said.text), "of confidence", round(said.confidence, 2))
    for one in said.citations:
        assert knowledge.is_verified(index, one)
        print(f'"{one.quote}" {Path(one.document).name}:{one.start}-{one.end}')
    if not said.citations:
        print("(no sentence of the passages has a word of this answer)")
    home.cleanup()


if __name__ == "__main__":
    main()
