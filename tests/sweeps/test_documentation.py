"""Every documented command can be composed with the configurations, including Hydra's own."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer

import captioning.cli  # noqa: F401  registers the resolver that the configurations use

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
