"""What a caller does wrong, each with its message; and odd values that are right."""

from __future__ import annotations

import asyncio
import math
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import calls
import numpy as np
import pytest
import torch

import shmbatch
from shmbatch import errors
from shmbatch.contract.columns import Column
from shmbatch.contract.signature import Signature
from shmbatch.protocol import control, directory, names, ownership
from shmbatch.protocol.layout import VERSION
from tests import processes
from tests.processes import PATIENCE_S, Served


@pytest.fixture(scope="module")
def values(transport: str) -> Iterator[Served]:
    with processes.served("values.py", "values") as executor:
        yield executor


@pytest.fixture(scope="module")
def adding(transport: str) -> Iterator[Served]:
    with processes.served("calls.py", "calls") as executor:
        yield executor


def refused(function: shmbatch.Function, kind: type[Exception], *args: Any, **kwargs: Any) -> str:
    """Return the one message with which every way of calling refuses these arguments."""

    async def awaited() -> str:
        with pytest.raises(kind) as caught:
            await function.remote.aio(*args, **kwargs)
        return str(caught.value)

    messages = {asyncio.run(awaited())}
    for made in (function.remote, function.spawn):
        with pytest.raises(kind) as caught:
            made(*args, **kwargs)
        assert type(caught.value) is kind
        messages.add(str(caught.value))
    (message,) = messages
    return message


# ---- arguments that do not fit ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "fact"),
    [
        ((1,), {}, "takes 2 arguments, missing 'ys'"),
        ((), {}, "takes 2 arguments, missing 'xs', 'ys'"),
        ((1, 2, 3), {}, "takes 2 arguments, 3 were given"),
        ((1,), {"zs": 2}, "got an unexpected argument 'zs'"),
        ((1, 2), {"xs": 2}, "got multiple values for argument 'xs'"),
    ],
)
def test_arguments_of_wrong_count_or_name(
    adding: Served, args: tuple[int, ...], kwargs: dict[str, int], fact: str
) -> None:
    assert refused(adding.connect("add"), errors.InputTypeError, *args, **kwargs) == (
        f"calls.add() {fact}; give one value of each list or stack in "
        f"(xs: list[int], ys: list[int]) -> list[int]"
    )


@pytest.mark.parametrize(
    ("value", "kind", "fact"),
    [
        ("1", errors.InputTypeError, "an int, got str '1'; use int(value) if"),
        (1.0, errors.InputTypeError, "an int, got float 1.0; use int(value) if"),
        (True, errors.InputTypeError, "an int, got bool True; use int(value) if"),
        (np.True_, errors.InputTypeError, "an int, got "),
        (None, errors.InputTypeError, "an int, got None; use int(value) if"),
        ([1], errors.InputTypeError, "an int, got list; one call carries one value, not a batch"),
        (np.array([1]), errors.InputTypeError, "an int, got ndarray of shape (1,); use .item()"),
        (2**63, errors.InputValueError, "an int from -2**63 to 2**63 - 1, got int 9223372036854"),
        (
            -(2**63) - 1,
            errors.InputValueError,
            "an int from -2**63 to 2**63 - 1, got int -92",
        ),
        (10**400, errors.InputValueError, "an int from -2**63 to 2**63 - 1, got int of 1329"),
    ],
)
def test_ints_that_are_none(values: Served, value: Any, kind: type[Exception], fact: str) -> None:
    message = refused(values.connect("ints"), kind, value)
    assert message.startswith(f"parameter 'xs' of values.ints must be {fact}")


@pytest.mark.parametrize("value", ["1.5", None, True, 1j, [1.5], np.float32])
def test_floats_that_are_none(values: Served, value: Any) -> None:
    message = refused(values.connect("floats"), errors.InputTypeError, value)
    assert message.startswith("parameter 'xs' of values.floats must be a float, got ")


def test_an_int_that_no_float_can_hold(values: Served) -> None:
    message = refused(values.connect("floats"), errors.InputValueError, 10**400)
    assert message.startswith("parameter 'xs' of values.floats must be a float of at most 1.79")


@pytest.mark.parametrize("value", [0, 1, "True", None, 1.0])
def test_bools_that_are_none(values: Served, value: Any) -> None:
    message = refused(values.connect("bools"), errors.InputTypeError, value)
    assert message.startswith("parameter 'xs' of values.bools must be a bool, got ")


@pytest.mark.parametrize(
    ("value", "kind", "fact"),
    [
        (
            np.zeros((2, 3)),
            errors.InputTypeError,
            "have dtype float32, got float64; use .astype('float32')",
        ),
        (
            np.zeros((2, 3), ">f4"),
            errors.InputTypeError,
            "have native byte order, got dtype >f4; use .astype('float32')",
        ),
        (
            np.zeros((3, 2), np.float32),
            errors.InputValueError,
            "have shape (2, 3), got (3, 2); reshape it, or change the annotation",
        ),
        (
            np.zeros((1, 2, 3), np.float32),
            errors.InputValueError,
            "have shape (2, 3), got (1, 2, 3); ",
        ),
        (
            np.zeros((4, 2, 3), np.float32),
            errors.InputValueError,
            "have shape (2, 3), got (4, 2, 3); one call carries one value, without the batch axis",
        ),
        (
            [[0.0] * 3] * 2,
            errors.InputTypeError,
            "be an array of dtype float32 and shape (2, 3), got list; use numpy.asarray(value, ",
        ),
        (1.5, errors.InputTypeError, "be an array of dtype float32 and shape (2, 3), got float"),
        (
            torch.zeros(2, 3, dtype=torch.float64),
            errors.InputTypeError,
            "have dtype float32, got float64; use .to(torch.float32)",
        ),
        (
            torch.zeros(2, 3, device="meta"),
            errors.InputTypeError,
            "hold data, got a tensor on meta",
        ),
        (
            torch.zeros(2, 3).to_sparse(),
            errors.InputTypeError,
            "be dense, got a tensor of layout torch.sparse_coo; use .to_dense()",
        ),
    ],
)
def test_arrays_that_do_not_fit(
    values: Served, value: Any, kind: type[Exception], fact: str
) -> None:
    message = refused(values.connect("arrays"), kind, value)
    assert message.startswith(f"parameter 'xs' of values.arrays must {fact}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_tensor_on_the_gpu_is_refused_with_the_remedy(values: Served) -> None:
    message = refused(values.connect("arrays"), errors.InputTypeError, torch.zeros(2, 3).cuda())
    assert message == (
        "parameter 'xs' of values.arrays must be on the CPU, got a tensor on cuda:0; use .cpu()"
    )


def test_tensors_that_do_not_fit(values: Served) -> None:
    message = refused(values.connect("tensors"), errors.InputTypeError, [[0.0] * 3] * 2)
    assert message == (
        "parameter 'xs' of values.tensors must be a tensor of dtype float64 and shape (2, 3), "
        "got list; use torch.tensor(value, dtype=torch.float64)"
    )
    message = refused(values.connect("halves"), errors.InputTypeError, np.zeros(4, np.float32))
    assert message == (
        "parameter 'xs' of values.halves must have dtype bfloat16, which numpy lacks, "
        "got float32; use torch.from_numpy(value).to(torch.bfloat16)"
    )


def test_a_refused_input_takes_no_slot_and_joins_no_batch(values: Served) -> None:
    ints = values.connect("ints")
    ring = ints.connect().ring
    before = values.statistics("ints")
    for _ in range(200):
        with pytest.raises(errors.InputError):
            ints.remote("no")
    assert ring.free_slots == ints.connect().capacity
    assert values.statistics("ints") == before


# ---- odd values that are right ----------------------------------------------------------------


def test_int64_limits_survive(values: Served) -> None:
    ints = values.connect("ints")
    numbers = [2**63 - 1, -(2**63), 0, -1, np.int8(-5), np.uint64(7)]
    for number in numbers:
        result = ints.remote(number)
        assert result == number
        assert type(result) is int
    assert refused(ints, errors.InputValueError, np.uint64(2**64 - 1))


def test_nan_infinity_and_signed_zero_survive(values: Served) -> None:
    floats = values.connect("floats")
    assert math.isnan(floats.remote(math.nan))
    assert [floats.remote(x) for x in (math.inf, -math.inf)] == [math.inf, -math.inf]
    assert math.copysign(1, floats.remote(-0.0)) == -1
    assert floats.remote(5e-324) == 5e-324
    assert [type(floats.remote(x)) for x in (3, np.float32(0.5), np.int64(2))] == [float] * 3
    bits = np.array([[math.nan, math.inf, -math.inf], [-0.0, 1e-45, 3.4e38]], np.float32)
    assert values.connect("arrays").remote(bits).tobytes() == bits.tobytes()


def test_bools_survive(values: Served) -> None:
    bools = values.connect("bools")
    results = [bools.remote(x) for x in (True, False, np.True_, np.False_)]
    assert [x is True for x in results] == [True, False, True, False]


def test_arrays_of_any_strides_survive(values: Served) -> None:
    arrays = values.connect("arrays")
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    strided = [
        base[::2, ::2],
        base[:2, :3],
        base[1::-1, 2::-1],
        np.asfortranarray(base[:2, :3]),
        np.broadcast_to(base[0, :3], (2, 3)),
        base.reshape(-1)[:6].reshape(3, 2).T,
    ]
    for array in strided:
        result = arrays.remote(array)
        assert result.tolist() == array.tolist()
        assert result.flags.writeable
        assert result.flags.owndata


def test_tensors_of_any_kind_survive(values: Served) -> None:
    tensors = values.connect("tensors")
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    for tensor in (base[:2, :3], base[::2, ::2], base[:3, :2].T, torch.nn.Parameter(base[:2, :3])):
        result = tensors.remote(tensor)
        assert type(result) is torch.Tensor
        assert not result.requires_grad
        assert torch.equal(result, tensor.detach())
    assert tensors.remote(np.ones((2, 3))).sum() == 6
    requires_grad = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(tensors.remote(requires_grad), torch.ones(2, 3, dtype=torch.float64))
    half = torch.tensor([1.5, math.inf, -0.0, math.nan], dtype=torch.bfloat16)
    result = values.connect("halves").remote(half)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result.view(torch.int16), half.view(torch.int16))


def test_tensors_arrive_as_arrays_where_arrays_are_asked_for(values: Served) -> None:
    tensors = values.connect("tensors", arrays="numpy")
    result = tensors.remote(np.ones((2, 3)))
    assert type(result) is np.ndarray
    raw = values.connect("halves", arrays="numpy").remote(torch.ones(4, dtype=torch.bfloat16))
    assert raw.tolist() == [0x3F80] * 4
    with pytest.raises(errors.ConfigError, match="arrays is 'list'; it must be one of native"):
        values.connect("tensors", arrays="list")


def test_a_producer_of_arrays_imports_no_torch(values: Served) -> None:
    code = """
import sys, numpy, shmbatch
for name in ("arrays", "tensors"):
    f = shmbatch.connect("values." + name, arrays="numpy")
    dtype = "float32" if name == "arrays" else "float64"
    assert f.remote(numpy.ones((2, 3), dtype)).sum() == 6
print(sorted({"torch", "asyncio", "jaxtyping", "click"} & set(sys.modules)))
"""
    with processes.Program(code) as program:
        assert program.line() == "[]"


def test_a_producer_without_torch_hears_that_it_needs_it(values: Served) -> None:
    code = """
import sys, shmbatch
sys.modules["torch"] = None
try:
    shmbatch.connect("values.tensors")
except shmbatch.errors.ConfigError as error:
    print(error)
"""
    with processes.Program(code) as program:
        assert program.line() == (
            "the result is a torch tensor and torch is not installed here; "
            'use connect(..., arrays="numpy") or `pip install shmbatch[torch]`'
        )


def test_arrays_without_elements_survive(values: Served) -> None:
    empties = values.connect("empties")
    result = empties.remote(np.zeros((0, 3), np.float32))
    assert result.shape == (0, 3)
    message = refused(empties, errors.InputValueError, np.zeros((3, 0), np.float32))
    assert "must have shape (0, 3), got (3, 0)" in message


def test_columns_of_single_numbers_take_numpy_scalars(values: Served) -> None:
    points = values.connect("points")
    results = [points.remote(np.int64(40), 2), points.remote(np.array(40), ys=2)]
    assert [result.shape for result in results] == [(), ()]
    assert [int(result) for result in results] == [42, 42]


# ---- nobody there, or somebody else -----------------------------------------------------------


def test_an_executor_that_does_not_run(adding: Served) -> None:
    with pytest.raises(errors.ExecutorNotFound) as caught:
        shmbatch.connect("nobody.f", timeout=0.05)
    assert str(caught.value) == (
        "no executor serves 'nobody'; start one with `shmbatch start FILE`, or wait for it with "
        "shmbatch.connect('nobody.f', timeout=...)"
    )
    assert isinstance(caught.value, LookupError)
    nobody = shmbatch.Function(names.Address("nobody", "f"))
    for made in (nobody.remote, nobody.spawn, lambda x: list(nobody.map([x]))):
        with pytest.raises(errors.ExecutorNotFound):
            made(1)

    async def main() -> None:
        with pytest.raises(errors.ExecutorNotFound):
            await nobody.remote.aio(1)
        with pytest.raises(errors.ExecutorNotFound):
            async for _ in nobody.map.aio([1]):
                pass

    asyncio.run(main())
    for ask in (shmbatch.stop, shmbatch.statistics):
        with pytest.raises(errors.ExecutorNotFound, match="no executor serves 'nobody'"):
            ask("nobody")


def test_connect_waits_until_the_name_is_served() -> None:
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.append(shmbatch.connect("late.add", timeout=PATIENCE_S).remote(1, 2))
    )
    waiting.start()
    with processes.served("calls.py", "late"):
        waiting.join(PATIENCE_S)
        assert found == [3]


def test_a_function_that_the_executor_does_not_have(adding: Served) -> None:
    with pytest.raises(errors.UnknownFunction) as caught:
        adding.connect("subtract")
    assert str(caught.value).startswith(
        "the executor of 'calls' has no function 'subtract'; it has 'add', 'add_later', "
    )
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("address", ["calls", "", ".add", "calls.", "a b.c", "a.b.c.d", "x" * 50])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(errors.ConfigError, match="name"):
        shmbatch.connect(address)


@pytest.mark.parametrize("timeout", ["1", math.nan, True])
def test_a_timeout_that_is_none(timeout: Any) -> None:
    with pytest.raises(errors.ConfigError, match=r"timeout is .*; give seconds as a number"):
        shmbatch.connect("calls.add", timeout=timeout)
    with pytest.raises(errors.ConfigError, match="timeout is"):
        calls.add.with_options(timeout=timeout)


@pytest.mark.parametrize("deadline_ms", [0, -1, math.nan, math.inf, "1", True, 1j])
def test_a_deadline_that_is_none(deadline_ms: Any) -> None:
    with pytest.raises(
        errors.ConfigError,
        match=r"deadline_ms is .*; give milliseconds as a finite number above 0",
    ):
        calls.add.with_options(deadline_ms=deadline_ms)


def test_a_deadline_beyond_what_the_clock_counts_is_never(adding: Served) -> None:
    patient = adding.connect("add").with_options(deadline_ms=10**400, timeout=PATIENCE_S)
    assert patient.remote(1, 2) == 3


def test_a_file_with_another_signature(adding: Served) -> None:
    ours = calls.add._signature
    assert ours is not None
    older = Signature(ours.parameters, replace(ours.result, kind="float", dtype="float64"))
    processes.hang_up()
    # Once with no connection yet, once where another handle has one.
    for _ in range(2):
        handle = shmbatch.Function(calls.add.address, signature=older)
        with pytest.raises(errors.SignatureMismatch) as caught:
            handle.remote(1, 2)
        assert str(caught.value) == (
            "'calls.add' is (xs: list[int], ys: list[int]) -> list[int] in the executor and "
            "(xs: list[int], ys: list[int]) -> list[float] in this producer; "
            "restart the one with the older file"
        )
        assert adding.connect("add").remote(1, 2) == 3
    renamed = Signature((Column("x", "int", "", "int64", ()), *ours.parameters[1:]), ours.result)
    handle = pickle.loads(pickle.dumps(shmbatch.Function(calls.add.address, signature=renamed)))
    with pytest.raises(errors.SignatureMismatch, match=re.escape("(x: list[int], ys:")):
        handle.remote(1, 2)


def test_a_producer_of_another_version_is_refused(adding: Served) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(directory.socket_path("calls")))
        hello = {"kind": "attach", "version": 7, "function": "add", "signature": None}
        control.send(sock, hello)
        reply, _ = control.receive(sock)
        assert reply == {
            "kind": "refused",
            "error": "VersionMismatch",
            "message": f"the executor of 'calls' speaks version {VERSION} of the protocol and "
            f"this producer version 7; install one shmbatch in both",
        }
        with pytest.raises(EOFError):
            control.receive(sock)


@contextmanager
def impostor(name: str, reply: dict[str, Any] | None) -> Iterator[None]:
    """Serve *name* with something that answers every producer alike, or not at all."""
    with (
        ownership.NameLock.claim(name) as lock,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(str(lock.socket_path))
        listener.listen()

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                control.receive(sock)
                if reply is not None:
                    control.send(sock, reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_an_executor_of_another_version_is_named() -> None:
    reply = {"kind": "refused", "error": "VersionMismatch", "message": "speaks version 9"}
    with (
        impostor("newer", reply),
        pytest.raises(errors.VersionMismatch, match="speaks version 9"),
    ):
        shmbatch.connect("newer.f", timeout=0)


@pytest.mark.parametrize(
    "reply",
    [
        {"kind": "refused", "error": "SystemExit", "message": "x"},
        {"kind": "refused"},
        {"kind": "surprise"},
        {"kind": "welcome"},
    ],
)
def test_an_answer_that_makes_no_sense_is_a_handshake_error(reply: dict[str, Any]) -> None:
    with impostor("odd", reply), pytest.raises(errors.HandshakeError):
        shmbatch.connect("odd.f", timeout=0)


def test_an_executor_that_hangs_up_is_not_found() -> None:
    with impostor("mute", None), pytest.raises(errors.ExecutorNotFound):
        shmbatch.connect("mute.f", timeout=0)


def test_a_name_that_is_served_already(adding: Served) -> None:
    command = [sys.executable, "-m", "shmbatch", "start", str(processes.APPS / "calls.py")]
    second = subprocess.run(
        command, capture_output=True, text=True, env=processes.environment(), timeout=PATIENCE_S
    )
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.splitlines()[-1] == (
        f"error: name 'calls' is already served by process {adding.pid}; "
        f"stop it with `shmbatch stop calls` or choose another --name"
    )
    assert adding.connect("add").remote(1, 2) == 3


def test_a_file_that_does_not_import_is_not_served(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import shmbatch\napp = shmbatch.App()\n\n1 / 0\n")
    broken = subprocess.run(
        [sys.executable, "-m", "shmbatch", "start", str(path)],
        capture_output=True,
        text=True,
        env=processes.environment(),
        timeout=PATIENCE_S,
    )
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1] == (
        f"error: '{path}' does not import: ZeroDivisionError: division by zero (line 4)"
    )
