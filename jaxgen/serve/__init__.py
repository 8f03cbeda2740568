"""Answers over HTTP in the form of the OpenAI API; `app` makes it of a model that is open.

Needs the extra [serve]. `jaxgen serve MODEL` runs it; any other ASGI server can.
"""

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.serve.asgi import app as app

__getattr__, __dir__ = lazy.attach(__name__)
