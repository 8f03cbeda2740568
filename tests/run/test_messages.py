"""What libraries say during a run goes to its log; what the reader needs is shown."""

import logging
import warnings

import jaxgen
from jaxgen.run.messages import collected


def test_messages_of_libraries_are_noted_and_ours_are_said(capsys):
    noted, said = [], []
    absl, jax = logging.getLogger("absl"), logging.getLogger("jax._src.compiler")
    before = (absl.handlers, absl.propagate, absl.level, warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with collected(noted.append, said.append):
            absl.warning("a shard\nis slow")
            jax.error("no such device")
            jax.info("a detail")
            warnings.warn_explicit("deprecated", DeprecationWarning, "/lib/optax/x.py", 7)
            warnings.warn_explicit("2 texts were cut", UserWarning, jaxgen.__file__, 7)
            text = "Error reading persistent compilation cache entry"
            warnings.warn_explicit(text, UserWarning, "/lib/jax/x.py", 7)
    assert len(noted) == 2 and len(said) == 3
    assert noted[0] == "warning of absl: a shard is slow"
    assert "deprecated" in noted[1] and "/lib/optax/x.py:7" in noted[1]
    assert said[0] == "error of jax._src.compiler: no such device"
    assert "2 texts were cut" in said[1] and "compilation cache" in said[2]
    assert (absl.handlers, absl.propagate, absl.level, warnings.showwarning)[:3] == before[:3]
    assert capsys.readouterr() == ("", "")
