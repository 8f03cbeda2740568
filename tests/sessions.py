"""Sessions on models made in memory."""

from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.session import Session


def session_on(config, params, tokenizer, start=None, **about):
    """Return a Session whose parameters are decoded as they are given."""
    return Session(LoadedModel(config, params, tokenizer, start, **about), params)
