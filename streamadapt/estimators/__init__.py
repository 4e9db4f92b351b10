"""Update rules for BatchNorm statistics."""

from streamadapt.estimators.alpha_bn import AlphaBN as AlphaBN
from streamadapt.estimators.base import Estimator as Estimator
from streamadapt.estimators.base import Observation as Observation
from streamadapt.estimators.batch_statistics import BatchStatistics as BatchStatistics
from streamadapt.estimators.correction import FrameCorrection as FrameCorrection
from streamadapt.estimators.dua import DUA as DUA
from streamadapt.estimators.ema import EMA as EMA
from streamadapt.estimators.frozen import Frozen as Frozen
from streamadapt.estimators.mecta import MECTA as MECTA
from streamadapt.estimators.restarting import Restarting as Restarting
from streamadapt.estimators.source_prior import SourcePrior as SourcePrior
from streamadapt.estimators.welford import Welford as Welford

__all__ = [
    "DUA",
    "EMA",
    "MECTA",
    "AlphaBN",
    "BatchStatistics",
    "Estimator",
    "FrameCorrection",
    "Frozen",
    "Observation",
    "Restarting",
    "SourcePrior",
    "Welford",
]
