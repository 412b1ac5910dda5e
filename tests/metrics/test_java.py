"""The Java programs and the process that starts them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

START = """
import sys
from captioning.metrics import meteor
print(meteor.MeteorProcess().pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)
def test_meteor_ends_with_the_process_that_started_it() -> None:
    """Even while it loads its table, which takes seconds."""
    parent = subprocess.Popen(
        [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    status = Path(f"/proc/{pid}/status")
    for _ in range(200):
        if status.read_text().startswith("Name:\tjava"):
            break
        time.sleep(0.02)
    else:
        raise AssertionError(status.read_text())
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.02)
    raise AssertionError("Java goes on without its parent")
