"""A flight recorder: what every batch showed and did, without images, to be replayed offline."""

from streamadapt.journal.format import Header as Header
from streamadapt.journal.reading import FileReport as FileReport
from streamadapt.journal.reading import JournalReader as JournalReader
from streamadapt.journal.record import Payload as Payload
from streamadapt.journal.recorder import RecordedStep as RecordedStep
from streamadapt.journal.recorder import Recorder as Recorder
from streamadapt.journal.replaying import Detector as Detector
from streamadapt.journal.replaying import JournalReplay as JournalReplay
from streamadapt.journal.replaying import StreamReplay as StreamReplay
from streamadapt.journal.replaying import replay_journal as replay_journal
from streamadapt.journal.settings import Journal as Journal
from streamadapt.journal.verdict import Verdict as Verdict
from streamadapt.journal.verdict import verdicts as verdicts

__all__ = [
    "Detector",
    "FileReport",
    "Header",
    "Journal",
    "JournalReader",
    "JournalReplay",
    "Payload",
    "RecordedStep",
    "Recorder",
    "StreamReplay",
    "Verdict",
    "replay_journal",
    "verdicts",
]
