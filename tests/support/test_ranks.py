from __future__ import annotations

import pytest

from captioning.support.ranks import is_first_process


@pytest.mark.parametrize(
    ("ranks", "is_first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "SLURM_PROCID": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"LOCAL_RANK": "0", "SLURM_PROCID": "8"}, False),  # the first of another machine
    ],
)
def test_the_first_process_has_no_rank_but_0(
    ranks: dict[str, str], is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, rank in ranks.items():
        monkeypatch.setenv(name, rank)
    assert is_first_process() == is_first
