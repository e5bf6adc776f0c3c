"""Builds the C core; everything else about the package is in pyproject.toml."""

from sysconfig import get_config_var
from textwrap import shorten

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, PlatformError

CORE = (
    *("core", "spinning", "values", "arrays", "segment", "producer", "lending", "moving"),
    *("verb", "call", "failure"),
    *("executor", "batch", "watchdog", "apart"),
)
HEADERS = ("core", "producer", "calling", "ring")

# A free-threaded interpreter has no limited API; there the core is built for just that version.
LIMITED = not get_config_var("Py_GIL_DISABLED")


class BuildCore(build_ext):
    def build_extension(self, extension):
        try:
            super().build_extension(extension)
        except (CCompilerError, PlatformError, OSError) as error:
            reason = shorten(str(error), 100)
            raise SystemExit(
                "shmbatch needs a C11 compiler and Python's headers to build its core "
                f"(on Debian: apt-get install gcc libc6-dev python3-dev): {reason}"
            ) from None


setup(
    ext_modules=[
        Extension(
            "shmbatch.protocol._core",
            [f"shmbatch/protocol/{name}.c" for name in CORE],
            depends=[f"shmbatch/protocol/{name}.h" for name in HEADERS],
            include_dirs=[np.get_include()],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED else [],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror=implicit"],
            py_limited_api=LIMITED,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
    cmdclass={"build_ext": BuildCore},
)
