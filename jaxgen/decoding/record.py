"""Settings of decoding as pytree nodes."""

from jaxgen.pytree import register_dataclass as record

__all__ = ["record"]
