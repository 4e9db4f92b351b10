"""How far the world has moved, and detectors that say when."""

from streamadapt.drift.adwin import ADWIN as ADWIN
from streamadapt.drift.alarms import Alarms as Alarms
from streamadapt.drift.autoregression import AutoRegression as AutoRegression
from streamadapt.drift.calibrated import CalibratedDetector as CalibratedDetector
from streamadapt.drift.cusum import CUSUM as CUSUM
from streamadapt.drift.detector import Detector as Detector
from streamadapt.drift.e_detector import EDetector as EDetector
from streamadapt.drift.entropy import EntropyTest as EntropyTest
from streamadapt.drift.export import FrameExport as FrameExport
from streamadapt.drift.monitor import FleetAlarm as FleetAlarm
from streamadapt.drift.monitor import ScoreMonitor as ScoreMonitor
from streamadapt.drift.page_hinkley import PageHinkley as PageHinkley
from streamadapt.drift.patient import PatientExecutor as PatientExecutor
from streamadapt.drift.readout import Drift as Drift
from streamadapt.drift.river import River as River
from streamadapt.moments import location_scale_distance as location_scale_distance

__all__ = [
    "ADWIN",
    "CUSUM",
    "Alarms",
    "AutoRegression",
    "CalibratedDetector",
    "Detector",
    "Drift",
    "EDetector",
    "EntropyTest",
    "FleetAlarm",
    "FrameExport",
    "PageHinkley",
    "PatientExecutor",
    "River",
    "ScoreMonitor",
    "location_scale_distance",
]
