"""`jaxgen WORDS...` that writes down which rows each step saw, and may signal itself at one.

    recorded.py ROWS.jsonl STEP SIGNAL WORDS...    SIGNAL 0: none

A line of ROWS.jsonl is {"step", "rows"}: the rows of this process, as places in the text.
"""

import json
import os
import sys

from jaxgen.cli import app
from jaxgen.data.loader import Batches
from jaxgen.run import peers

peers.EVERY = 0.0  # steps this small would else be over before anybody asks who was told to stop


def main(path: str, at: int, number: int, words: list[str]) -> int:
    following = Batches.__next__

    def recorded(self):
        step = self.state()["step"] + 1
        if step == at and number:
            os.kill(os.getpid(), number)
        batch = following(self)
        with open(path, "a") as file:
            file.write(json.dumps({"step": step, "rows": batch["index"].tolist()}) + "\n")
        return batch

    Batches.__next__ = recorded
    return app.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
