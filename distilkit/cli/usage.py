"""Wrong usage, said as every other error is: what was wrong, and what to type."""

import re
import sys
from collections.abc import Iterable
from typing import Any

import typer

from distilkit.errors import DistilkitError, did_you_mean

STATUS = 2  # that wrong usage ends with


def explained(error: typer.TyperException) -> DistilkitError:
    """What typer refuses, in the form of our own errors."""
    context: Any = getattr(error, "ctx", None)
    parameter: Any = getattr(error, "param", None)
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    help = f"{context.command_path if context else f'distilkit {command}'} --help"
    if parameter is not None and hasattr(error, "param_type"):
        return _missing(context.command, parameter, help)
    if parameter is not None and (told := getattr(error.__cause__, "errors", None)):
        return _unfit(parameter, told()[0], help)
    if hasattr(error, "possibilities"):
        option = str(getattr(error, "option_name", ""))
        return DistilkitError(
            f"no option `{option}`", did_you_mean(option, _options(context)) or help
        )
    if hasattr(error, "option_name"):
        option = str(error.option_name)
        needs = "takes no value" if "not take" in error.message else "needs a value"
        return DistilkitError(f"`{option}` {needs}", help)
    if found := re.match(r"No such command ['\"](.*)['\"]", error.message):
        known = getattr(context.command, "commands", {}) if context else {}
        hint = did_you_mean(found[1], known)
        return DistilkitError(f"no command `{found[1]}`", hint or help)
    if found := re.match(r"Got unexpected extra argument\S* \((.*)\)", error.message):
        return DistilkitError(f"`{found[1]}` is more than the command takes", help)
    said = error.format_message().rstrip(".").replace("'", "`")
    return DistilkitError(said[:1].lower() + said[1:], help)


def _missing(command: Any, parameter: Any, help: str) -> DistilkitError:
    """The argument or option that has to be given, with an example of the command."""
    examples = [
        x for x in re.findall(r"`([^`]+)`", command.help or "") if x.startswith("distilkit ")
    ]
    said = f"`{_name(parameter)}` is missing: {_first_lower(parameter.help or '')}".rstrip(": .")
    return DistilkitError(said, examples[0] if examples else help)


def _unfit(parameter: Any, told: dict[str, Any], help: str) -> DistilkitError:
    """A value of the wrong kind, beyond its bounds, or none of those that can be chosen."""
    choices = [str(choice) for choice in parameter.type_descriptor.choices or ()]
    head = f"`{_name(parameter)}` cannot be `{told['input']}`: must be "
    if choices:
        listed = [f"`{choice}`" for choice in choices]
        near = did_you_mean(str(told["input"]), choices)
        return DistilkitError(head + ", ".join(listed[:-1]) + f" or {listed[-1]}", near or help)
    said = _first_lower(str(told["msg"])).removeprefix("input should be ").partition(", unable")[0]
    return DistilkitError(head + said, help)


def _name(parameter: Any) -> str:
    """How a parameter is typed: an option with its dashes, an argument by its name in capitals."""
    if parameter.param_type_name == "option":
        return str(parameter.opts[0])
    return str(parameter.name).upper()


def _options(context: Any) -> Iterable[str]:
    """All options of a command, and those of the program."""
    while context is not None:
        for parameter in context.command.get_params(context):
            if parameter.param_type_name == "option":
                yield from (*parameter.opts, *parameter.secondary_opts)
        context = context.parent


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]
