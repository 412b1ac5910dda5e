"""Every documented command can be composed with the configurations, including Hydra's own."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from omegaconf import open_dict

from captioning.cli.jobs import command_of

ROOT = Path(__file__).parents[2]

COMMANDS = {
    line.partition("  #")[0].strip("` ")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for line in re.findall(r"^python (?:train|eval)\.py.*|`python (?:train|eval)\.py[^`\n]*`",
                           page.read_text(), re.MULTILINE)
}  # fmt: skip


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_can_be_composed(command: str) -> None:
    _, script, *arguments = shlex.split(command)
    given = [each for each in arguments if each not in ("-m", "...", "--help")]
    overrides = []
    for each in OverridesParser.create().parse_overrides(given):
        if each.is_sweep_override():
            for value in each.sweep_iterator(transformer=Transformer.encode):
                overrides.append(f"{each.get_key_element()}={value}")
                break
        else:
            overrides.append(str(each.input_line))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose(script.removesuffix(".py"), overrides, return_hydra_config=True)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (ROOT / "conf/sweep").glob("*")))
def test_the_recorded_command_of_a_job_composes_that_job_alone(sweep: str) -> None:
    overrides = [f"sweep={sweep}", "model.dropout=0.25", "seed=3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job = compose("train", overrides, return_hydra_config=True)
        script, *recorded = shlex.split(command_of(job.hydra))[1:]
        again = compose(script.removesuffix(".py"), recorded, return_hydra_config=True)
    assert job.hydra.mode.name == "MULTIRUN"
    assert again.hydra.mode.name == "RUN"
    with open_dict(job), open_dict(again):
        del job.hydra, again.hydra
    assert again == job
    assert again.seed == 3
