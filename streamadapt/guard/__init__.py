"""What keeps adaptation from hurting: judged frames, compared answers, former states."""

from streamadapt.guard.settings import Guard as Guard

__all__ = ["Guard"]
