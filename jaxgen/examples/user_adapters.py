"""Many users of one model: each trains an adapter of their own, and one batch serves them all.

The model beneath stays as it is and is in memory once; a user is a folder with an adapter of a few
kilobytes, with preferences if they have any. Forgetting a user removes what was learnt of them.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import jaxgen
from jaxgen.pretrained import adapted
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation

PROMPT = "my pet is a "
PETS = {"ann": "cat", "bob": "dog"}
TRAIN = {"batch": 8, "warmup": 4, "learning_rate": 0.02, "track": []}
BASE = {
    "model": {
        "context": 32, "layers": 1, "d_model": 32, "heads": 2, "norm": "rms", "positions": "rope",
        "feed": "swiglu", "biases": "none",
    },
    "tokenizer": {"kind": "bytes"},
}  # fmt: skip
ASKED = Generation(temperature=0.0, max_new_tokens=4)


def train(home: Path, name: str, sections: dict, steps: int, pets: list[str]) -> Path:
    """Train on sentences about pets; return the run's folder."""
    file = home / f"{name}.txt"
    file.write_text("".join(f"{PROMPT}{pet}.\n" for pet in pets * 200))
    data = {"files": [str(file)], "split": "tail"}
    return jaxgen.train(
        sections | {"data": data, "train": TRAIN | {"steps": steps}}, out=home / "runs" / name
    )


def learn(home: Path, base: Path, name: str) -> None:
    """Train an adapter on a user's text, and write it into their folder as PEFT has it."""
    sections = {"init_from": str(base), "adapter": {"kind": "lora", "rank": 4}}
    run = train(home, name, sections, 60, [PETS[name]])
    folder = home / "users" / name
    folder.mkdir(parents=True)
    adapted.write_peft(run, folder / "adapter")


def main() -> None:
    with TemporaryDirectory() as place:
        home = Path(place)
        base = train(home, "base", BASE, 150, list(PETS.values()))  # knows both, prefers none
        for name in PETS:
            learn(home, base, name)

        session = jaxgen.open(base, users=home / "users")
        prompts = [Prompt(PROMPT, ASKED, user=name) for name in PETS]
        for (name, pet), found in zip(PETS.items(), session.run(prompts), strict=True):
            print(f"{name}: {PROMPT}{found[0].text}")  # one batch, an adapter a row
            assert found[0].text.startswith(pet)

        assert session.users is not None
        removed = session.users.forget("ann")
        print(f"forgot ann: {len(removed)} files, {sum(one.size for one in removed)} bytes")
        assert not (home / "users" / "ann").exists()


if __name__ == "__main__":
    main()
