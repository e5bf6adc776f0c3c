"""Which inputs a function is tried on: those of a file, else some made from its signature."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.columns import RAW_DTYPES, Column
from ..contract.packing import Arguments
from ..contract.signature import Signature
from ..errors import ConfigError, InputError

_MADE, _MADE_NBYTES = 64, 16 << 20  # examples, where there is no file; at most
_ARRAYS = ("array", "ragged")


@dataclass(frozen=True)
class Examples:
    """Inputs of single calls, and what a person is told of them."""

    calls: list[tuple[Any, ...]]  # one value a parameter, as the core takes them
    described: str


def examples_for(signature: Signature, name: str, file: str | None, seed: int = 0) -> Examples:
    """Return the examples of *file*, or made ones, in a random order: neighbours may be alike.

    Args:
        name: of the function, for messages.
        seed: which order; that of one seed is always the same.
        file: .npz or .json with one entry a parameter, or .npy or .json of the only one; the
            first axis counts the examples.

    Raises:
        ConfigError: the file cannot be read, or does not fit the signature; or there is none, and
            a parameter can be anything.
    """
    if file is None:
        nbytes = sum(column.nbytes for column in signature.parameters)
        count = max(1, min(_MADE, _MADE_NBYTES // max(1, nbytes)))
        columns = [_made(column, name, count) for column in signature.parameters]
        calls: list[tuple[Any, ...]] = list(zip(*columns, strict=True))
        described = "inputs made from the signature (zeros for integers, else from 0 to 1)"
    else:
        calls = _read(signature, Path(file), name)
        described = f"{len(calls)} input{'' if len(calls) == 1 else 's'} of {Path(file).name}"
    arguments = Arguments(signature, name)
    coerced = []
    for number, call in enumerate(calls):
        try:
            coerced.append(arguments.coerce(call))
        except InputError as error:
            raise ConfigError(f"example {number} of '{file}' does not fit: {error}") from error
    random.Random(seed).shuffle(coerced)
    return Examples(coerced, described)


def _made(column: Column, name: str, count: int) -> Sequence[Any]:
    """Return so many values of which it may be hoped that every function takes them."""
    numbers = np.random.default_rng(0)
    if column.kind == "int":
        return [0] * count
    if column.kind == "bool":
        return [False] * count
    if column.kind == "float":
        values: list[float] = numbers.random(count).tolist()
        return values
    if column.kind not in _ARRAYS or (column.kind == "ragged" and column.dtype in RAW_DTYPES):
        raise ConfigError(
            f"parameter {column.name!r} of {name} is a {column.annotation}, of which no example "
            f"can be made; give some with --input"
        )
    if column.dtype in RAW_DTYPES:
        import importlib

        torch = importlib.import_module("torch")
        return list(torch.rand((count, *column.shape)).to(getattr(torch, column.dtype)))
    shape = (count, *map(abs, column.shape))  # rows of varying length are made as long as can be
    if column.wire_dtype.kind in "fc":
        return list(numbers.random(shape).astype(column.wire_dtype))
    return list(np.zeros(shape, column.wire_dtype))


def _read(signature: Signature, path: Path, name: str) -> list[tuple[Any, ...]]:
    entries = _entries(signature, path)
    names = [column.name for column in signature.parameters]
    missing = [each for each in names if each not in entries]
    extra = [each for each in entries if each not in names]
    if missing or extra:
        told = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
        told += [f"has {', '.join(map(repr, extra))}, no parameter"] if extra else []
        raise ConfigError(
            f"'{path}' {' and '.join(told)}; {name} takes {', '.join(map(repr, names))}"
        )
    columns = [_values(column, entries[column.name], path) for column in signature.parameters]
    counts = {len(values) for values in columns}
    if len(counts) > 1:
        lengths = ", ".join(f"{len(v)} {n!r}" for n, v in zip(names, columns, strict=True))
        raise ConfigError(f"'{path}' has {lengths}; give as many of each, one an example")
    if counts == {0}:
        raise ConfigError(f"'{path}' has no examples; give at least 1")
    return list(zip(*columns, strict=True))


def _entries(signature: Signature, path: Path) -> Mapping[str, Any]:
    """Return what the file has for each parameter, whatever that is."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix == ".npy":
            content: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
        else:
            raise ConfigError(f"--input is '{path}'; use a file .npz, .npy or .json")
    except FileNotFoundError:
        raise ConfigError(f"there is no file '{path}'") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"'{path}' cannot be read: {error}") from error
    if isinstance(content, dict):
        return content
    if len(signature.parameters) > 1:
        raise ConfigError(
            f"'{path}' has values of one parameter and there are {len(signature.parameters)}; "
            f"use a .npz, or a .json of an object, with one entry each"
        )
    return {signature.parameters[0].name: content}


def _values(column: Column, values: Any, path: Path) -> Sequence[Any]:
    if isinstance(values, np.ndarray):
        if values.ndim == 0:
            raise ConfigError(
                f"'{path}' has a single {values.dtype} for {column.name!r}; "
                f"give an array whose first axis counts the examples"
            )
        return list(values) if column.kind in (*_ARRAYS, "ndarray") else values.tolist()
    if not isinstance(values, list):
        raise ConfigError(
            f"'{path}' has a {type(values).__name__} for {column.name!r}; "
            f"give a list with one value an example"
        )
    if column.kind not in _ARRAYS:
        return values
    try:  # JSON has lists only, and their numbers have no dtype of their own
        return [np.asarray(value, column.wire_dtype) for value in values]
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"'{path}' has values for {column.name!r} that are no {column.annotation}: {error}"
        ) from error
