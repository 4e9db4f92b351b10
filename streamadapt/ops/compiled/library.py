"""The compiled kernels, where they are there."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from streamadapt.ops.compiled import build

_COMMIT_POINTERS = (
    "mean",
    "var",
    "weights",
    "elapsed",
    "allowed",
    "rows",
    "data",
    "tallies",
    "source",
    "positions",
    "eps",
    "memory",
    "prior",
    "given",
    "healthy",
    "starts",
    "sizes",
    "columns",
    "pooled_mean",
    "pooled_var",
    "frames",
    "trust",
    "verdict",
    "phase",
)
_COMMIT_SIZES = ("batch", "row_count", "channels", "layers", "width", "watched", "settles")
_COMMIT_VALUES = (
    "block_frames",
    "block_seconds",
    "alarm",
    "clip",
    "max_weight",
    "level",
    "unlike",
    "material",
    "noise",
    "settling_seconds",
    "longer",
)


_PROPOSAL_POINTERS = (
    "mean",
    "var",
    "weights",
    "trust",
    "elapsed",
    "allowed",
    "rows",
    "data",
    "tallies",
    "source",
    "wanted_mean",
    "wanted_var",
    "scale",
    "shift",
    "gain",
    "bias",
)
_PROPOSAL_SIZES = (
    "batch",
    "row_count",
    "stride",
    "channels",
    "size",
    "width",
    "phase",
    "settled_seconds",
    "table_stride",
)


class LayerCall(ctypes.Structure):
    """`sa_layer` of `src/streamadapt.h`, where its fields are explained."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("var", ctypes.c_void_p),
        ("distance", ctypes.c_void_p),
        ("row_mean", ctypes.c_void_p),
        ("row_precision", ctypes.c_void_p),
        ("foreign", ctypes.c_void_p),
        ("source_mean", ctypes.c_void_p),
        ("source_var", ctypes.c_void_p),
        ("frames", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("positions", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("frame_stride", ctypes.c_int64),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("usual", ctypes.c_double),
        ("dtype", ctypes.c_int32),
        ("channels_last", ctypes.c_int32),
        ("backwards", ctypes.c_int32),
        ("begins", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class TablesCall(ctypes.Structure):
    """`sa_tables` of `src/streamadapt.h`, where its fields are explained."""

    _fields_ = (
        ("mean", ctypes.c_void_p),
        ("var", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("precision", ctypes.c_void_p),
        ("centre", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("biases", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("channels", ctypes.c_void_p),
        ("eps", ctypes.c_void_p),
        ("layers", ctypes.c_int64),
        ("measured", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("table_stride", ctypes.c_int64),
    )


class CommitCall(ctypes.Structure):
    """`sa_commit` of `src/streamadapt.h`, where its fields are explained."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _COMMIT_POINTERS),
        *((name, ctypes.c_int64) for name in _COMMIT_SIZES),
        *((name, ctypes.c_double) for name in _COMMIT_VALUES),
    )


class ProposalCall(ctypes.Structure):
    """`sa_proposal` of `src/streamadapt.h`, where its fields are explained."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _PROPOSAL_POINTERS),
        *((name, ctypes.c_int64) for name in _PROPOSAL_SIZES),
        *((name, ctypes.c_double) for name in ("eps", "prior")),
    )


@dataclass(frozen=True)
class Kernels:
    """The library.

    Attributes:
        handle: of the shared object; calls release the GIL.
        instruction_set: that its kernels run with here.
    """

    handle: ctypes.CDLL
    instruction_set: str

    def run_layer(self, address: int) -> int:
        """Moments, application or both of one layer; how many frames are far from their rows.

        Args:
            address: of a `LayerCall`.

        Raises:
            MemoryError: there was no room for some sums.
        """
        far: int = self.handle.sa_run_layer(address)
        if far < 0:
            raise MemoryError("no memory for a layer's sums")
        return far

    def run_commit(self, call: CommitCall) -> None:
        """A step's moments to the bank.

        Raises:
            MemoryError: there was no room to work in; nothing was changed.
        """
        if self.handle.sa_run_commit(ctypes.addressof(call)) < 0:
            raise MemoryError("no memory for a commit")

    def run_proposal(self, call: ProposalCall) -> None:
        """What a settling pass makes of a layer.

        Raises:
            MemoryError: there was no room to work in.
        """
        if self.handle.sa_run_proposal(ctypes.addressof(call)) < 0:
            raise MemoryError("no memory for a settling pass")

    def fill_tables(self, call: TablesCall) -> None:
        """Statistics as scale and shift."""
        self.handle.sa_fill_tables(ctypes.addressof(call))

    def same_words(self, words: int, known: int, count: int) -> bool:
        """Whether `count` words, whose addresses are at `words`, are the ones at `known`."""
        return bool(self.handle.sa_same_words(words, known, count))


@dataclass(frozen=True)
class Found:
    """What there is of compiled kernels.

    Attributes:
        kernels: ready for use; None: what needs them takes PyTorch's own kernels.
        problem: why there are none, and what to do.
    """

    kernels: Kernels | None
    problem: str | None


REBUILD = "streamadapt doctor --build"


@cache
def find() -> Found:
    """Load the library, if it is there, fits the sources and is wanted."""
    if os.environ.get("STREAMADAPT_KERNELS", "").lower() == "off":
        return Found(None, "switched off by STREAMADAPT_KERNELS=off")
    if not build.LIBRARY.exists():
        return Found(None, f"not built: install a C compiler and run `{REBUILD}`")
    try:
        handle: Any = ctypes.CDLL(str(build.LIBRARY))
        handle.sa_source_digest.restype = ctypes.c_char_p
        handle.sa_instruction_set.restype = ctypes.c_char_p
        handle.sa_run_layer.restype = ctypes.c_int64
        handle.sa_run_layer.argtypes = [ctypes.c_void_p]
        handle.sa_run_commit.restype = ctypes.c_int64
        handle.sa_run_commit.argtypes = [ctypes.c_void_p]
        handle.sa_run_proposal.restype = ctypes.c_int64
        handle.sa_run_proposal.argtypes = [ctypes.c_void_p]
        handle.sa_fill_tables.restype = None
        handle.sa_fill_tables.argtypes = [ctypes.c_void_p]
        handle.sa_same_words.restype = ctypes.c_int32
        handle.sa_same_words.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        made_of = handle.sa_source_digest().decode()
    except (OSError, AttributeError) as error:
        return Found(None, f"cannot be loaded ({error}); build them anew: `{REBUILD}`")
    if made_of != build.digest():
        return Found(None, f"stale, built from other sources; build them anew: `{REBUILD}`")
    return Found(Kernels(handle, handle.sa_instruction_set().decode()), None)
