"""The floors of the house: which module may import what; see docs/explanation/design.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import shmbatch
from tests.programs import ran

PACKAGE = Path(shmbatch.__file__).parent

# What each floor may import of this package, beside itself.
FLOORS = {
    "errors": set[str](),
    "protocol": {"errors"},
    "contract": {"errors", "protocol.layout"},
    "client": {"errors", "protocol", "contract"},
    "executor": {"errors", "protocol", "contract"},
    "supervisor": {"errors", "protocol"},
    "app": {"errors", "protocol", "contract", "client"},
    "web": {"errors", "protocol", "contract", "client", "app"},
    "testing": {"errors", "protocol", "contract", "client", "executor", "app"},
    "tuning": {"errors", "protocol", "contract", "client", "executor", "app"},
    "doctor": {"errors", "protocol", "contract", "client", "executor", "app"},
    "cli": {"errors", "protocol", "contract", "client", "executor", "app", "web", "tuning"}
    | {"doctor", "supervisor"},
}

# Where a module of somebody else's may be imported, and the only places.
HOMES = {
    "torch": {
        "client.results",
        "executor.staging.devices",
        "executor.staging.runtime",
        "tuning.examples",  # makes what numpy has no dtype for
    },
    "posix_ipc": {"protocol.posix"},
    "msgspec": {
        "contract.exceptions",
        "contract.messagepack",
        "contract.schema",
        "protocol.control",
        "protocol.snapshot",
    },
    "click": {
        "cli",
        "cli.admission",
        "cli.doctor",
        "cli.entrypoint",
        "cli.options",
        "cli.printing",
        "cli.ps",
        "cli.reload",
        "cli.run",
        "cli.serve",
        "cli.start",
        "cli.stop",
        "cli.stats",
        "cli.target",
        "cli.tune",
    },
    "fastapi": {"web.admitting", "web.health", "web.site"},
    "fastapi_offline": {"web.site"},
    "starlette": {
        "web.admitting",
        "web.disconnecting",
        "web.lifespan",
        "web.site",
    },
    "uvicorn": {"web.server"},
    "matplotlib": {"tuning.drawing"},
    "rich": {"client.progress"},
    "jaxtyping": set[str](),
    "hypothesis": {"testing.drawing"},  # its type; elsewhere it is imported by name when needed
    "pytest": {"testing.plugin"},
    "datetime": set[str](),
    "time": {
        "app.starting",  # sleeps while others start an executor
        "client.call",
        "client.connection",
        "client.handshake",
        "client.pool",  # sleeps until the next executor of a kept name is there
        "client.succession",
        "protocol.clock",
        "tuning.producer",  # sleeps until the next call is to be made
    },
    "ctypes": {"executor.staging.batched"},  # calls into CUDA that torch does not offer
    "pickle": {"contract.pickling"},  # for codec="pickle" alone, imported where that is asked for
    "multiprocessing": set[str](),
    "threading": {
        "app.instance",  # one object for `.local`, whoever calls first
        "client.attended",
        "client.connection",
        "client.line",
        "client.listener",
        "client.pool",
        "client.slots",
        "client.succession",
        "executor.control",
        "executor.lander",  # sleeps for a batch on the device
        "executor.watchdog",  # ends the process when the loop's thread does not come back
        "protocol.names",
        "protocol.ownership",
        "web.worker",  # watches the supervisor, whatever the user's code is doing
    },
}


@dataclass(frozen=True)
class Module:
    """One file of the package, and all that it imports, wherever in the file it does."""

    name: str  # without "shmbatch."
    tree: ast.Module

    @property
    def floor(self) -> str:
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[str]:
        """Yield absolute names; ``from ..a import b`` as ``shmbatch.a.b``."""
        package = ["shmbatch", *self.name.split(".")]
        if _file(self.name).name != "__init__.py":
            package.pop()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                source = [*above, *(node.module or "").split(".")]
                for alias in node.names:
                    yield ".".join(filter(None, [*source, alias.name]))
            elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
                yield str(getattr(node.args[0], "value", ""))


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _file(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def modules() -> list[Module]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found.append(Module(name, ast.parse(path.read_text(), str(path))))
    return found


MODULES = modules()
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name or "top")


def test_there_is_something_to_look_at() -> None:
    floors = {module.floor for module in MODULES}
    assert floors == {*FLOORS, "", "__main__"}
    assert "shmbatch.protocol._core.ProducerRing" in set(_module("client.attended").imports())
    assert "shmbatch.app.load" in {i.rpartition(".")[0] for i in _module("cli.run").imports()}
    assert "torch" in set(_module("executor.staging.runtime").imports())


def _module(name: str) -> Module:
    return next(module for module in MODULES if module.name == name)


@each_module
def test_a_module_imports_only_the_floors_below(module: Module) -> None:
    if module.floor in ("", "__main__"):
        return
    allowed = FLOORS[module.floor] | {module.floor}
    for name in module.imports():
        package, _, rest = name.partition(".")
        if package == "shmbatch":
            assert any(rest == floor or rest.startswith(f"{floor}.") for floor in allowed), (
                f"{module.name} imports {name}"
            )


@each_module
def test_others_modules_are_imported_at_home_only(module: Module) -> None:
    for name in module.imports():
        home = HOMES.get(name.partition(".")[0])
        assert home is None or module.name in home, f"{module.name} imports {name}"


@each_module
def test_torch_is_imported_by_name_when_it_is_needed(module: Module) -> None:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not any(name.partition(".")[0] == "torch" for name in named), module.name


def test_every_home_is_lived_in() -> None:
    for name, homes in HOMES.items():
        for home in homes:
            assert name in {each.partition(".")[0] for each in _module(home).imports()}, home


def test_only_one_module_reads_the_clock() -> None:
    uses = {
        node.attr
        for node in ast.walk(_module("client.connection").tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    }
    assert uses == {"sleep"}, "waiting is not reading"


def test_the_batcher_knows_neither_clock_nor_memory() -> None:
    assert set(_module("executor.batcher").imports()) == {"__future__.annotations", "enum"}


@each_module
def test_every_module_says_first_what_it_decides(module: Module) -> None:
    if module.name != "__main__":
        docstring = ast.get_docstring(module.tree)
        assert docstring, f"{module.name} has no docstring"
        first = docstring.split("\n")[0]
        assert first.endswith((".", ":")), f"the first line of {module.name} is no sentence"


def test_the_public_names_are_few_and_all_there() -> None:
    assert len(shmbatch.__all__) <= 20
    assert sorted(shmbatch.__all__) == dir(shmbatch)
    for name in shmbatch.__all__:
        assert getattr(shmbatch, name) is not None
    with pytest.raises(AttributeError, match="module 'shmbatch' has no attribute 'nothing'"):
        _ = shmbatch.nothing


SLOW = ("torch", "asyncio", "msgspec", "click", "posix_ipc", "jaxtyping", "multiprocessing")
LOADED = f"print([name for name in {SLOW!r} if name in sys.modules])"


def loaded(*statements: str) -> str:
    """Run statements in a fresh Python that has numpy; say which slow modules it then has."""
    code = "\n".join(["import sys, numpy", *statements, LOADED])
    result = ran("-c", code, python=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_loads_nothing_slow_and_nothing_of_its_own() -> None:
    ours = "print(sorted(name for name in sys.modules if name.startswith('shmbatch')))"
    names, slow = loaded("import shmbatch", ours).splitlines()
    assert names == "['shmbatch', 'shmbatch.errors']"
    assert slow == "[]"


def test_all_public_names_together_load_neither_torch_nor_asyncio() -> None:
    names = loaded("from shmbatch import *")
    for slow in ("torch", "asyncio", "click", "posix_ipc", "jaxtyping", "multiprocessing"):
        assert slow not in names


def test_a_producer_that_never_awaits_loads_neither_torch_nor_asyncio(tmp_path: Path) -> None:
    program = tmp_path / "doubles.py"
    program.write_text(
        "import sys\n"
        "import shmbatch\n"
        "app = shmbatch.App()\n"
        "@app.function()\n"
        "@shmbatch.batched(max_batch_size=4, wait_ms=0)\n"
        "def double(xs: list[int]) -> list[int]:\n"
        "    return [2 * x for x in xs]\n"
        "if __name__ == '__main__':\n"
        "    with app.run():\n"
        "        assert list(double.map(range(9))) == list(range(0, 18, 2))\n"
        f"    {LOADED}\n"
    )
    result = ran(program, python=True)
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout == "['msgspec']\n"


def test_the_core_is_in_use_and_no_copy_in_python() -> None:
    import shmbatch.protocol._core as core

    assert core.__file__.endswith(".so")
    assert sys.modules["shmbatch.protocol._core"] is core
