"""The arithmetic that computed a run's figures: precision, device, backend and threads.

Two runs that differ in nothing else compute the same function with other rounding. The leaderboard
counts them as one configuration and says so.
"""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import JsonValue, PositiveInt

from captioning.reporting.record import Name, Record

Implementation = Literal["torch", "c", "triton"]

_CPU_INFO = Path("/proc/cpuinfo")


class Backend(Record):
    """The implementations that ran.

    Attributes:
        asked: the setting: ``auto``, ``torch`` or ``native``.
        ops: the implementation of each op; see ``captioning.kernels.backend.report``.
    """

    asked: Name
    ops: dict[Name, Implementation]

    @property
    def label(self) -> str:
        """The implementations in short, such as ``c`` or ``torch (beam), triton (attention)``."""
        by_kind: dict[str, list[str]] = {}
        for op, kind in sorted(self.ops.items()):
            by_kind.setdefault(kind, []).append(op)
        if len(by_kind) < 2:
            return next(iter(by_kind), self.asked)
        return ", ".join(f"{kind} ({' '.join(ops)})" for kind, ops in sorted(by_kind.items()))


class Arithmetic(Record):
    """The resolved arithmetic of a run; see `Arithmetic.of`.

    Attributes:
        precision: as Lightning names it, such as ``bf16-mixed`` or ``32-true``; never ``auto``.
        device: kind and name, such as ``cuda: NVIDIA H100`` or ``cpu: Intel Xeon 6975P-C``.
        backend: what was asked for, and what ran.
        threads: torch's number of threads on the CPU.
    """

    precision: Name
    device: Name
    backend: Backend
    threads: PositiveInt

    @classmethod
    def of(
        cls, *, precision: str, device: str, backend: str, ops: Mapping[str, str], threads: int
    ) -> "Arithmetic":
        """Describe the arithmetic of this process.

        Args:
            precision: the resolved one, ``trainer.precision``.
            device: a torch device, such as ``str(trainer.strategy.root_device)``.
            backend: the setting.
            ops: ``captioning.kernels.backend.report(device)``.
            threads: ``torch.get_num_threads()``.
        """
        return cls.model_validate(
            {
                "precision": precision,
                "device": device_name(device),
                "backend": {"asked": backend, "ops": dict(ops)},
                "threads": threads,
            }
        )

    def texts(self) -> dict[str, str]:
        """Its parts as tables show them."""
        return {
            "precision": self.precision,
            "device": self.device,
            "backend": self.backend.label,
            "threads": str(self.threads),
        }


def arithmetic_texts(
    arithmetic: Arithmetic | None, settings: Mapping[str, JsonValue]
) -> dict[str, str]:
    """The arithmetic of a run as far as it is known.

    Files of schema 1 do not have it. What was asked for stands in its place then, such as a
    precision of ``auto``, or ``unknown``.

    Args:
        arithmetic: as recorded, or None.
        settings: the configuration of the run.
    """
    if arithmetic is not None:
        return arithmetic.texts()
    trainer = settings.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    asked = {
        "precision": trainer.get("precision"),
        "device": trainer.get("accelerator"),
        "backend": settings.get("backend", settings.get("compile")),
        "threads": None,
    }
    return {part: "unknown" if value is None else str(value) for part, value in asked.items()}


def device_name(device: str) -> str:
    """The kind and the name of a device, such as ``cuda: NVIDIA H100 80GB HBM3``.

    Args:
        device: a torch device, such as ``cpu`` or ``cuda:1``.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return f"cpu: {_cpu_name()}"
    if kind == "cuda":
        import torch

        return f"cuda: {torch.cuda.get_device_name(device)}"
    return kind


def _cpu_name() -> str:
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "unknown"


@runtime_checkable
class HasParameters(Protocol):
    """A ``torch.nn.Module``, as far as its parameters are counted."""

    def parameters(self) -> Any: ...


def count_parameters(parts: Mapping[str, HasParameters]) -> tuple[dict[str, int], int]:
    """Count the parameters of the parts of a model.

    Args:
        parts: modules by name, such as encoder, decoder and objective.

    Returns:
        The number of all parameters of each part, and the total of the trainable ones. A parameter
        that is shared by two parts counts once in the total.
    """
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    trainable = {
        id(p): p.numel() for part in parts.values() for p in part.parameters() if p.requires_grad
    }
    return counts, sum(trainable.values())
