"""Fixtures of the tests of kernels."""

from collections.abc import Callable

import jaxtyping
import pytest


@pytest.fixture(params=["torch", "c", "triton"])
def backend(request: pytest.FixtureRequest, use: Callable[[str], None]) -> str:
    """Run a test with each implementation of the ops; see the fixture ``use``."""
    language: str = request.param
    use({"torch": "torch", "c": "C", "triton": "Triton"}[language])
    return language


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the type checks that the tests add, to see what a user without them would."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
