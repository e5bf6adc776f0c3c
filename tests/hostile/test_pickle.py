"""Nothing is unpickled but values of functions that ask for it, on neither side.

Executor and producer run with a pickle module that ends the process when it is asked to load
something; what they exchange is of every kind there is, and pickles among it, as plain bytes.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from shmbatch.protocol import ownership
from tests import processes
from tests.processes import Program

FORBIDDEN = """
import os, pickle, sys
def forbidden(*arguments, **options):
    os.write(2, b"something was unpickled")
    os._exit(99)
class Unpickler:
    __init__ = forbidden
pickle.load = pickle.loads = forbidden
pickle.Unpickler = Unpickler
BOMB = b"cos\\n_exit\\n(I99\\ntR."
"""

APP = """
from dataclasses import dataclass
import numpy as np
from jaxtyping import Float32
import shmbatch
from shmbatch import errors

app = shmbatch.App()

@dataclass
class Order:
    item: str
    extra: bytes

def served(function):
    return app.function()(shmbatch.batched(max_batch_size=4, wait_ms=0)(function))

@served
def texts(xs: list[str]) -> list[str]:
    return xs

@served
def blobs(xs: list[bytes]) -> list[bytes]:
    return xs

@served
def numbers(xs: list[int]) -> list[float]:
    return [float(x) for x in xs]

@served
def arrays(xs: Float32[np.ndarray, "batch 2"]) -> Float32[np.ndarray, "batch 2"]:
    return xs

@served
def any_arrays(xs: list[np.ndarray]) -> list[np.ndarray]:
    return xs

@served
def orders(xs: list[Order]) -> list[Order]:
    return xs

@served
def fails(xs: list[bytes]) -> list[bytes]:
    raise ValueError(xs[0], BOMB)

@served
async def pickling(xs: list[int]) -> list[bool]:
    return ["shmbatch.contract.pickling" in sys.modules] * len(xs)
"""

PRODUCER = """
import numpy as np, shmbatch
import unpickled as user
from tests.hostile.raw import Raw
with Raw("unpickled") as raw:
    raw.send_bytes(BOMB)
    assert raw.said()[-1]["kind"] == "refused"
assert user.blobs.remote(BOMB) == BOMB
assert user.texts.remote("x" + BOMB.hex()) == "x" + BOMB.hex()
assert user.numbers.remote(3) == 3.0
assert user.arrays.remote(np.ones(2, np.float32)).tolist() == [1, 1]
array = np.frombuffer(BOMB, np.uint8)
assert user.any_arrays.remote(array).tolist() == array.tolist()
assert user.orders.remote(user.Order("tea", BOMB)) == user.Order("tea", BOMB)
try:
    user.fails.remote(BOMB)
except ValueError as error:
    assert error.args == (BOMB, BOMB)
else:
    raise AssertionError("it did not fail")
assert user.pickling.remote(1) is False
assert "shmbatch.contract.pickling" not in sys.modules
assert shmbatch.statistics("unpickled")["functions"]["fails"]["calls_failed"] == 1
print("nothing was unpickled", flush=True)
sys.stdin.read()
"""

ASKS = APP.replace("wait_ms=0)", 'wait_ms=0, codec="pickle")')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "is_asked_for"),
    [(APP, False), (ASKS, True)],
    ids=["not asked for", "control: asked for"],
)
def test_nothing_is_unpickled_that_no_function_asks_for(
    tmp_path: Path, transport: str, app: str, is_asked_for: bool
) -> None:
    (tmp_path / "unpickled.py").write_text(FORBIDDEN + textwrap.dedent(app))
    path = f"{tmp_path}:{processes.environment()['PYTHONPATH']}"
    if not is_asked_for:
        served = processes.served(str(tmp_path / "unpickled.py"), "unpickled")
        with served, Program(FORBIDDEN + PRODUCER, PYTHONPATH=path) as program:
            assert program.line() == "nothing was unpickled"
        return
    executor = processes.Served(str(tmp_path / "unpickled.py"), "unpickled")
    with Program(FORBIDDEN + PRODUCER, PYTHONPATH=path):
        assert executor.wait() == 99
    executor.kill()
    ownership.sweep()
