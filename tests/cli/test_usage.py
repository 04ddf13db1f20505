import subprocess
import sys

import pytest
from command_line import run, run_json

from guidedq import __version__
from guidedq.registry import KINDS, available

COMMANDS = (
    *("compile", "plan", "compare", "eval", "check", "verify", "generate", "schedule", "inspect", "law"),
    *("profile", "stages"),
)


def test_the_version_is_printed_alone() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"guidedq {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"guidedq {command} " in result.stdout or command == "stages"


def test_the_help_names_every_command() -> None:
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["compile", "demo"],
        ["compile"],
        ["compile", "demo", "--budget", "4", "--scope", "everything"],
        ["compile", "demo", "--budget", "4", "--samples", "0"],
        ["compile", "demo", "--budget", "4", "--max-loss-increase", "much"],
        ["compile", "demo", "--budget", "4", "--colour", "blue"],
        ["frobnicate"],
    ],
)
def test_wrong_usage_exits_with_2_and_says_why_on_stderr(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_stages_lists_every_stage_with_its_options_and_defaults() -> None:
    listed = run_json("stages")["stages"]
    assert {kind: sorted(stages) for kind, stages in listed.items()} == {
        kind: sorted(available(kind)) for kind in KINDS
    }
    options = {option["name"]: option for option in listed["round"]["gptq"]["options"]}
    assert options["damping-fraction"]["default"] == "0.01"
    assert options["activation-order"]["default"] == "false"
    assert options["damping-fraction"]["summary"].startswith("Added to the diagonal")
    every = [stage for stages in listed.values() for stage in stages.values()]
    assert all(stage["summary"] for stage in every)
    assert all(option["summary"] for stage in every for option in stage["options"])


def test_stages_are_readable_too() -> None:
    text = run("stages").stdout
    assert "gptq" in text
    assert "damping-fraction=0.01" in text


def test_a_slow_library_is_loaded_only_when_it_is_needed() -> None:
    code = (
        "import sys, guidedq.cli.application; print({'torch', 'onnx', 'transformers', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
