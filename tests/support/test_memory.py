"""With glibc, freed memory stays with the process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
import torch
from captioning.support.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
targets = torch.zeros(1149, dtype=torch.long)
faults = []
for _ in range(60):  # the loss of a step: a dozen tensors of up to 12 MB come and go
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    logits = torch.ones(1149, 2600, dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.cross_entropy(logits.float(), targets, label_smoothing=0.1).backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[20:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_step_like_the_last_one_asks_the_system_for_no_memory() -> None:
    def page_faults(policy: str) -> int:
        command = [sys.executable, "-c", SCRIPT, policy]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert page_faults("kept") < page_faults("default") / 3


HUGE = """
import re, torch
from pathlib import Path
from captioning.support.memory import keep_freed_memory

keep_freed_memory()
grids = [torch.ones(7 << 20, dtype=torch.uint8) for _ in range(20)]
print(re.search(r"AnonHugePages: *(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])
"""


def test_what_tensors_use_is_in_huge_pages_where_the_system_has_them() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if (
        platform.libc_ver()[0] != "glibc"
        or not setting.exists()
        or "[never]" in setting.read_text()
    ):
        pytest.skip("this system has no huge pages to give")
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000  # kB, of 140 MB
