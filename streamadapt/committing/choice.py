"""Which kernels commit."""

from __future__ import annotations

from collections.abc import Callable

from streamadapt.bank import StatisticsBank
from streamadapt.committing.compiled import CompiledCommit
from streamadapt.committing.device import DeviceCommit
from streamadapt.committing.written import KernelCommit
from streamadapt.estimators import Estimator
from streamadapt.layout import BankLayout
from streamadapt.ops.compiled import Kernels
from streamadapt.ops.device import DeviceOperations


def choose_commit(
    kernels: Kernels | DeviceOperations | None,
    estimator: Estimator,
    layout: BankLayout,
    bank: StatisticsBank,
    *,
    on_failure: Callable[[str], None],
) -> KernelCommit | None:
    """For a bank where it lies now; None: PyTorch commits.

    Args:
        kernels: that normalise layers; those that commit belong to them.
        estimator: whose rule it is.
        layout: of the bank.
        bank: what is committed to.
        on_failure: told why, when kernels cannot be had after all.
    """
    if isinstance(kernels, DeviceOperations):
        if bank.device.type != kernels.device_type:
            return None
        return DeviceCommit.of(kernels.commits, estimator, layout, bank, on_failure=on_failure)
    return CompiledCommit.of(kernels, estimator, layout, bank)
