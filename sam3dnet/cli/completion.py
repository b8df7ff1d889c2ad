"""Completion of our commands in a shell, made from their own parsers."""

from argparse import Action, ArgumentParser
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points

from sam3dnet.cli.command import make_parser, make_parser_of_all, path_of
from sam3dnet.errors import Sam3dError


def completion_script(shell: str) -> str:
    """Write what a shell needs to complete the options of all our commands.

    Args:
        shell: "bash", "zsh" or "tcsh".

    Raises:
        Sam3dError: If shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise Sam3dError("completion is made with shtab, which is not installed; type: pip install shtab") from error
    scripts = []
    for parser in commands().values():
        for action in _actions(parser):
            if action.type is path_of:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        scripts.append(shtab.complete(parser, shell=shell))
    return "\n".join(scripts)


def _actions(parser: ArgumentParser) -> Iterator[Action]:
    """Yield the actions of a parser, and of those that it chooses among."""
    for action in parser._actions:
        yield action
        for chosen in action.choices.values() if isinstance(action.choices, Mapping) else ():
            yield from _actions(chosen)


def commands() -> dict[str, ArgumentParser]:
    """Give the parsers of the installed commands by name.

    Each is made from the function that is named like the command's module, or from the module's COMMANDS.
    """
    points = (point for point in entry_points(group="console_scripts") if point.module.startswith("sam3dnet.cli."))
    parsers = {}
    for point in sorted(points, key=lambda point: point.name):
        module = import_module(point.module)
        if hasattr(module, "COMMANDS"):
            parsers[point.name] = make_parser_of_all(module.COMMANDS, point.name)
        else:
            parsers[point.name] = make_parser(getattr(module, point.module.rpartition(".")[2]), point.name)
    return parsers
