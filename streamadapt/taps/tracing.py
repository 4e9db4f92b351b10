"""Tracing with `torch.fx` while other threads run models.

While `torch.fx` traces, it has `nn.Module.__call__` and `__getattr__` replaced for the whole
process: modules that other threads run would become part of the graph, and two traces at once would
leave the replacement of one behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_one_at_a_time = threading.Lock()


class OneThreadTracer(fx.Tracer):
    """Traces what the thread that calls `trace` does, and nothing else."""

    _thread: int | None = None

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """See `torch.fx.Tracer`; waits for other traces."""
        with _one_at_a_time:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """See `torch.fx.Tracer`; other threads' modules run as they are."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """See `torch.fx.Tracer`; other threads get what is there."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
