"""The texts that ship with Python."""

import hashlib
import subprocess
import sys

from jaxgen import data
from jaxgen.data import DataSettings


def test_python_docs_are_large_and_hold_no_text_twice():
    found = list(data.documents(DataSettings(corpus="python-docs")))
    texts = [document.text for document in found]
    assert len(set(texts)) == len(texts) > 200
    assert 1_200_000 < sum(map(len, texts)) < 4_000_000
    assert any('The "if" statement is used for conditional execution' in t for t in texts)
    assert not any("\0" in text for text in texts)


def test_python_docs_are_the_same_in_another_process():
    program = (
        "import hashlib; from jaxgen import data\n"
        "texts = ''.join(d.text for d in data.python_docs())\n"
        "print(hashlib.sha256(texts.encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    here = "".join(document.text for document in data.python_docs())
    assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest(), done.stderr


def test_docstring_pairs_hold_the_source_without_its_docstring():
    pair = next(pair for pair in data.docstring_pairs() if pair.module == "bisect.py")
    assert pair.summary == "Insert item x in list a, and keep it sorted assuming a is sorted."
    assert pair.source.startswith("def insort_right(a, x, lo=0, hi=None")
    assert "a.insert(lo, x)" in pair.source and "sorted assuming" not in pair.source


def test_docstring_documents_end_with_the_summary():
    found = data.python_docstrings()
    assert len(found) > 2000
    insort = next(document.text for document in found if document.source == "bisect.py")
    assert "\n\n# In one line: Insert item x in list a, and keep it sorted" in insort
