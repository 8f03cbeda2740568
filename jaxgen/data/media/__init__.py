"""Sound and images in files as the arrays that a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.data.media.images import Pixels, read_image
    from jaxgen.data.media.log_mel import LogMel
    from jaxgen.data.media.resampling import resample
    from jaxgen.data.media.sound import read_sound, write_wav

__all__ = ["LogMel", "Pixels", "read_image", "read_sound", "resample", "write_wav"]

__getattr__, __dir__ = lazy.attach(__name__)
