from __future__ import annotations

import importlib
from types import ModuleType

import pytest

PACKAGES = ("qwen_edge", "qwen_edge.hub", "qwen_edge.convert", "qwen_edge.quantize", "qwen_edge.bench")


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_every_public_name_is_listed_and_can_be_had(package: ModuleType) -> None:
    assert set(package.__all__) <= set(dir(package))
    assert set(package._HOMES) <= set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in vars(package)


def test_an_unknown_name_is_an_attribute_error_that_names_the_package(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'lod'"):
        _ = package.lod
