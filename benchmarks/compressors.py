"""What do ordinary compressors need for the text that the quickstart is validated on?

    python benchmarks/compressors.py

Prints bits per byte of the validation split of python-docs: gzip alone, and xz that has seen the
training split first, which is the fair rival of a model trained on it.
"""

import gzip
import lzma

from jaxgen.data import DataSettings, assigned

texts = {"train": "", "valid": "", "test": ""}
for split, document in assigned(DataSettings(corpus="python-docs")):
    texts[split] += document.text
train, valid = texts["train"].encode(), texts["valid"].encode()


def xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


print(f"gzip: {8 * len(gzip.compress(valid, 9)) / len(valid):.3f} bits per byte")
print(f"xz after the training text: {8 * (xz(train + valid) - xz(train)) / len(valid):.3f}")
