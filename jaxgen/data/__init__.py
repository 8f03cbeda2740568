"""Data: documents to token shards, and shards to batches whose order is a function of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.data.copies import CopyIndex, index_copies
    from jaxgen.data.corpora import Pair, docstring_pairs, python_docs, python_docstrings
    from jaxgen.data.corpus import Corpus, prepare
    from jaxgen.data.document import Document
    from jaxgen.data.labels import labels_of
    from jaxgen.data.loader import Batches, batches, in_order
    from jaxgen.data.pack import documents_of
    from jaxgen.data.parts import Part, join_parts, prepare_part
    from jaxgen.data.reading import documents
    from jaxgen.data.rounds import round_batches
    from jaxgen.data.settings import DataSettings, Form
    from jaxgen.data.shard import TokenShard, open_shard
    from jaxgen.data.split import assigned, training_texts
    from jaxgen.data.streams import Tally
    from jaxgen.data.units import poisson_batches, unit_rows

__all__ = [
    "Batches",
    "CopyIndex",
    "Corpus",
    "DataSettings",
    "Document",
    "Form",
    "Pair",
    "Part",
    "Tally",
    "TokenShard",
    "assigned",
    "batches",
    "docstring_pairs",
    "documents",
    "documents_of",
    "in_order",
    "index_copies",
    "join_parts",
    "labels_of",
    "open_shard",
    "poisson_batches",
    "prepare",
    "prepare_part",
    "python_docs",
    "python_docstrings",
    "round_batches",
    "training_texts",
    "unit_rows",
]

__getattr__, __dir__ = lazy.attach(__name__)
