"""Completion of our commands in a shell, made from their own parsers."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sam3dnet.cli.command import make_parser
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
    for prog, function in commands().items():
        parser = make_parser(function, prog)
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        scripts.append(shtab.complete(parser, shell=shell))
    return "\n".join(scripts)


def commands() -> dict[str, Callable[..., Any]]:
    """Give the functions of the installed commands by name; each is named like its module."""
    points = (point for point in entry_points(group="console_scripts") if point.module.startswith("sam3dnet.cli."))
    return {
        point.name: getattr(import_module(point.module), point.module.rpartition(".")[2])
        for point in sorted(points, key=lambda point: point.name)
    }
