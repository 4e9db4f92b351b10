"""Builds the kernels beside the package where there is a C compiler; everything else is declared.

`STREAMADAPT_BUILD=0` leaves them out, `=1` fails without them; otherwise they are left out, with a
warning, where they cannot be built. A wheel with them is tagged for its platform, one without is
pure.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def _builder():
    path = HERE / "streamadapt" / "ops" / "compiled" / "build.py"
    spec = importlib.util.spec_from_file_location("streamadapt_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILDER = _builder()
WANTED = os.environ.get("STREAMADAPT_BUILD", "auto")
FOLDER = BUILDER.LIBRARY.relative_to(HERE)
BUILT = HERE / "build" / "kernels" / BUILDER.LIBRARY.name


def _built() -> bool:
    """Build once, whichever command asks first."""
    if WANTED == "0":
        return False
    if not _built.done:
        _built.done = True
        BUILT.unlink(missing_ok=True)
        try:
            BUILDER.build(BUILT)
        except (BUILDER.BuildFailed, OSError) as error:
            if WANTED == "1":
                raise SystemExit(f"streamadapt: the kernels were not built: {error}") from error
            sys.stderr.write(f"streamadapt: without compiled kernels: {error}\n")
    return BUILT.exists()


_built.done = False


class BuildWithKernels(build_py):
    """The Python files, and the kernels."""

    def run(self):
        super().run()
        target = (HERE if self.editable_mode else Path(self.build_lib)) / FOLDER
        if not _built():
            target.unlink(missing_ok=True)  # of an earlier build
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        self.copy_file(str(BUILT), str(beside))
        os.replace(beside, target)

    def get_outputs(self, *args, **kwargs):
        outputs = super().get_outputs(*args, **kwargs)
        if _built() and not self.editable_mode:
            outputs.append(str(Path(self.build_lib) / FOLDER))
        return outputs


class WheelWithKernels(bdist_wheel):
    """For any Python 3 of one platform; without kernels, of all."""

    def finalize_options(self):
        built = _built()
        self.distribution.has_ext_modules = lambda: built  # not for every machine
        super().finalize_options()

    def get_tag(self):
        if self.root_is_pure:
            return super().get_tag()
        return ("py3", "none", super().get_tag()[2])


setup(
    cmdclass={
        "build_py": BuildWithKernels,
        "bdist_wheel": WheelWithKernels,
    }
)
