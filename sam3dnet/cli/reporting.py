"""What a command shows and keeps: results and messages on the terminal, all of it in a log file."""

import io
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO

from sam3dnet.errors import Sam3dError

RESULT = 25  # between INFO and WARNING: what --quiet still shows
logging.addLevelName(RESULT, "RESULT")

_FILE_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


@contextmanager
def reporting(prog: str, *, quiet: bool = False, verbose: bool = False, log_file: Path | None = None) -> Iterator[None]:
    """Show the messages of sam3dnet on standard output, errors on standard error, and write all to a file.

    Args:
        prog: Name of the command; stands before errors.
        quiet: Show no progress, only results, warnings and errors.
        verbose: Show details too, such as the traceback of a case that failed.
        log_file: Gets everything with the time, details too, after what it holds already; None for none.

    Raises:
        Sam3dError: If the log file cannot be written.
    """
    from sam3dnet.preprocessing.progress import hide_bars

    lowest = logging.DEBUG if verbose else RESULT if quiet else logging.INFO
    handlers = [_messages(lowest), _errors(prog), *([_file(log_file)] if log_file else [])]
    logger = logging.getLogger("sam3dnet")
    of_nibabel = logging.getLogger("nibabel.global")  # says of headers what our checks say with the file's name
    level_before, propagated_before, nibabels_before = logger.level, logger.propagate, of_nibabel.level
    of_nibabel.setLevel(logging.ERROR)
    logger.setLevel(logging.DEBUG if log_file else lowest)
    logger.propagate = False  # libraries give the root logger a handler, and all would be shown twice
    for handler in handlers:
        logger.addHandler(handler)
    hide_bars(quiet)
    try:
        logger.debug("%s", shlex.join([prog, *sys.argv[1:]]))
        yield
    finally:
        hide_bars(False)
        logger.setLevel(level_before)
        of_nibabel.setLevel(nibabels_before)
        logger.propagate = propagated_before
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def printed_as(level: int) -> Iterator[None]:
    """Turn what is printed, also by nnU-Net, into messages of this level, so that all goes one way."""
    lines = _PrintedLines(level, sys.stdout)
    with ExitStack() as stack:
        stack.callback(lines.finish)
        stack.enter_context(redirect_stdout(lines))
        yield


class _PrintedLines(io.StringIO):
    """Stands for standard output and hands each line that is printed to the log."""

    def __init__(self, level: int, terminal: TextIO):
        super().__init__()
        self._level, self._terminal = level, terminal
        self._unfinished = ""

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            logging.getLogger("sam3dnet.printed").log(self._level, "%s", line)
        return len(text)

    def finish(self) -> None:
        """Hand over a last line without an end."""
        if self._unfinished:
            self.write("\n")

    def isatty(self) -> bool:
        return self._terminal.isatty()


class _BesideBars(logging.StreamHandler):
    """Writes a message without leaving half a progress bar on its line."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            super().emit(record)
            return
        with tqdm.tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def _messages(lowest: int) -> logging.Handler:
    handler = _BesideBars(sys.stdout)
    handler.setLevel(lowest)
    handler.addFilter(lambda record: record.levelno < logging.ERROR)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def _errors(prog: str) -> logging.Handler:
    handler = _BesideBars(sys.stderr)
    handler.setLevel(logging.ERROR)
    handler.setFormatter(logging.Formatter(f"{prog.replace('%', '%%')}: %(message)s"))
    return handler


def _file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise Sam3dError(f"log file {path} cannot be written ({reason}); choose another one with --log-file") from error
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    return handler
