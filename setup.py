"""Builds the C core; everything else about the package is in pyproject.toml."""

from textwrap import shorten

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, PlatformError

CORE = ("core", "values", "segment", "producer", "executor", "batch")


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
            depends=["shmbatch/protocol/core.h", "shmbatch/protocol/ring.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror=implicit"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    cmdclass={"build_ext": BuildCore},
)
