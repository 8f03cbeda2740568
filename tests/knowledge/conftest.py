"""Documents, and a small encoder."""

import pytest
from small_documents import save_encoder, write_docs


@pytest.fixture(scope="session")
def docs(tmp_path_factory):
    return write_docs(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoders") / "small")
