"""What modules hold, compared all at once: before each step of a model with many of them."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

from torch import nn
from torch.nn.modules import module as module_hooks
from torch.utils.hooks import RemovableHandle


class Contents:
    """What modules held, and that they had no hooks, when they were added."""

    def __init__(self) -> None:
        self._sized: list[Mapping[str, Any]] = []
        self._sizes: list[int] = []
        self._held: list[Mapping[str, Any]] = []
        self._keys: list[str] = []
        self._values: list[Any] = []
        self._hooks: list[Mapping[int, Any]] = [
            module_hooks._global_forward_hooks,
            module_hooks._global_forward_pre_hooks,
        ]
        self._registered: int | None = None  # hooks so far, in the whole process

    def size(self, mapping: Mapping[str, Any]) -> None:
        """As many entries are to be in it as now."""
        self._sized.append(mapping)
        self._sizes.append(len(mapping))

    def hold(self, mapping: Mapping[str, Any]) -> None:
        """The same keys are to be in it as now, with the same objects."""
        self.size(mapping)
        for key, value in mapping.items():
            self.keep(mapping, key, value)

    def keep(self, mapping: Mapping[str, Any], key: str, value: Any) -> None:
        """An object is to be under a key."""
        self._held.append(mapping)
        self._keys.append(key)
        self._values.append(value)

    def unhooked(self, module: nn.Module) -> None:
        """It is to have no forward hooks."""
        self._hooks += [module._forward_hooks, module._forward_pre_hooks]

    def add(self, other: Contents) -> None:
        """All that another has."""
        self._sized += other._sized
        self._sizes += other._sizes
        self._held += other._held
        self._keys += other._keys
        self._values += other._values
        self._hooks += other._hooks[2:]

    def same(self) -> bool:
        """Whether all is as it was."""
        registered = RemovableHandle.next_id
        if registered != self._registered:
            if any(self._hooks):
                return False
            self._registered = registered
        if list(map(len, self._sized)) != self._sizes:
            return False
        return all(map(is_, map(dict.get, self._held, self._keys), self._values))  # type: ignore[arg-type]
