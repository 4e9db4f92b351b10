"""Adapted statistics that outlive the process."""

from streamadapt.store.file_store import FileStore as FileStore
from streamadapt.store.folder import Generation as Generation
from streamadapt.store.state import StreamState as StreamState

__all__ = ["FileStore", "Generation", "StreamState"]
