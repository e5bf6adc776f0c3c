"""What a device may be called, and who says it."""

from __future__ import annotations

import os
from typing import Any

import pytest

from shmbatch.contract.device import device_name
from shmbatch.errors import ConfigError
from tests.programs import ran

NAMES = ("auto", "cpu", "cuda", "cuda:0", "cuda:7", "cuda:15")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHMBATCH_DEVICE", raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_as_the_argument_says_whatever_the_environment_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBATCH_DEVICE", "nonsense")

    assert device_name(name) == name


@pytest.mark.parametrize("name", NAMES)
def test_without_an_argument_it_is_as_the_environment_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBATCH_DEVICE", name)

    assert device_name(None) == name


def test_without_either_it_is_chosen_by_itself() -> None:
    assert "SHMBATCH_DEVICE" not in os.environ
    assert device_name(None) == "auto"


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "CUDA", "mps", "cuda:", "cuda:-1", "cuda:01", "cuda:x", "cuda:0\n", " cpu", 0],
)
def test_another_name_is_refused_with_the_names_there_are(name: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        device_name(name)

    assert str(caught.value) == (
        f"device is {name!r}; use auto, cpu, cuda or cuda:N, as in cuda:0"
    )


@pytest.mark.parametrize("name", ["", "gpu", "cuda:-1", "cuda:٣"])
def test_a_wrong_name_in_the_environment_is_refused_as_that(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBATCH_DEVICE", name)
    with pytest.raises(ConfigError) as caught:
        device_name(None)

    assert str(caught.value) == (
        f"SHMBATCH_DEVICE is {name!r}; use auto, cpu, cuda or cuda:N, as in cuda:0"
    )


def test_a_name_is_checked_without_torch_and_without_numpy() -> None:
    code = (
        "import sys\n"
        "from shmbatch.contract.device import device_name\n"
        "print(device_name('cuda:1'), {'torch', 'numpy'} & set(sys.modules))"
    )
    result = ran("-c", code, python=True)

    assert (result.stdout, result.stderr) == ("cuda:1 set()\n", "")
