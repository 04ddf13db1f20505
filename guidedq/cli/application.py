"""All commands under one roof, and what an error becomes on the way out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from guidedq import __version__
from guidedq.cli.check import check
from guidedq.cli.compare import compare
from guidedq.cli.compile import compile_command
from guidedq.cli.evaluate import evaluate
from guidedq.cli.generate import generate
from guidedq.cli.inspect import inspect_command
from guidedq.cli.law import law_command
from guidedq.cli.plan import plan
from guidedq.cli.profile import profile
from guidedq.cli.schedule import schedule
from guidedq.cli.stages import stages
from guidedq.cli.verify import verify
from guidedq.errors import GateError, GuidedQError

EXIT_ERROR = 1
EXIT_GATE = 3
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells do."""

HELP = """
Give it a trained model and a size, and get the best model of that size, with its loss predicted beforehand.

MODEL is a Hugging Face folder, an .onnx file, a .pt2 file (torch.export), a name on the hub (org/name), or demo, a
small language model inside the package.
"""
EXAMPLES = "Try: guidedq compile demo --budget 3.5bits"

LONG_COMMANDS = ("compile", "compare", "law", "plan")
"""Commands with a workspace: what is done need not be done again."""
STOPPED = "stopped; nothing was left in the output folder. The same command goes on where it stopped."


@final
class Commands(TyperGroup):
    """The group of commands: turns our errors into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except GateError as error:
            _say(f"gate missed: {error}")
            raise typer.Exit(EXIT_GATE) from error
        except GuidedQError as error:
            _say(f"error: {error}")
            raise typer.Exit(EXIT_ERROR) from error
        except KeyboardInterrupt as error:
            _say(STOPPED if ctx.invoked_subcommand in LONG_COMMANDS else "stopped.")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if not _is_usage(error):
                error.add_note(f"This is a bug of guidedq {__version__}: please report it, with all of the above.")
            raise


application = typer.Typer(
    cls=Commands,
    help=HELP,
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@application.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """The options before any command."""
    if version:
        sys.stdout.write(f"guidedq {__version__}\n")
        raise typer.Exit


application.callback(help=HELP, invoke_without_command=True)(options)


def paragraphs(command: Callable[..., None]) -> str:
    r"""The help of a command: its docstring, whose paragraphs after a `\b` are printed as they stand."""
    return inspect.cleandoc(command.__doc__ or "").replace("\\b", "\b")


application.command("compile", help=paragraphs(compile_command))(compile_command)
application.command("plan", help=paragraphs(plan))(plan)
application.command("compare", help=paragraphs(compare))(compare)
application.command("eval", help=paragraphs(evaluate))(evaluate)
application.command("check", help=paragraphs(check))(check)
application.command("verify", help=paragraphs(verify))(verify)
application.command("schedule", help=paragraphs(schedule))(schedule)
application.command("generate", help=paragraphs(generate))(generate)
application.command("inspect", help=paragraphs(inspect_command))(inspect_command)
application.command("law", help=paragraphs(law_command))(law_command)
application.command("profile", help=paragraphs(profile))(profile)
application.command("stages", help=paragraphs(stages))(stages)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _is_usage(error: Exception) -> bool:
    """Whether typer raised it to report wrong usage; its class has moved between versions."""
    return hasattr(error, "exit_code") and hasattr(error, "format_message")
