"""The base of interfaces that are torch modules: `help` of a class shows what is its own."""

from __future__ import annotations

from abc import ABC, ABCMeta

from torch import nn

FOREIGN = ("torch", "diffusers", "transformers", "peft", "huggingface_hub")


class InterfaceMeta(ABCMeta):
    """Leaves the names of torch's and diffusers' classes out of `dir` of a class, and so of `help`.

    `help(Compressor)` is then the tutorial of its kind, which torch's module would hide under two
    thousand lines. Only what is listed changes: attributes are found as always.
    """

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if not _is_foreign(cls, name)]


def _is_foreign(cls: type, name: str) -> bool:
    home = next((base for base in cls.__mro__ if name in vars(base)), cls)
    return home.__module__.partition(".")[0] in FOREIGN


class Interface(nn.Module, ABC, metaclass=InterfaceMeta):
    """A torch module that plugins subclass; `dir` of an instance lists all, torch's names too."""

    def __dir__(self) -> list[str]:
        names = (name for base in type(self).__mro__ for name in vars(base))
        inherited: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return sorted({*inherited, *names})
