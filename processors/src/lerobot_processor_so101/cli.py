# SPDX-License-Identifier: Apache-2.0
"""Run a console command: options by draccus, errors in one line, interrupts with exit code 130."""

import errno
import logging
import signal
import sys
import threading
from argparse import SUPPRESS, _ArgumentGroup
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_type_hints

import draccus
from draccus.utils import DraccusException

if TYPE_CHECKING:
    from docstring_parser.google import GoogleParser

_EXPERT = "Expert options, with defaults that rarely need a change"  # a section of docstrings, as Args


def run_command[Config](
    name: str,
    options: type[Config],
    command: Callable[[Config], str | None],
    interrupted: str = "stopped.",
    log: str | None = None,
) -> None:
    """Parse the command line and run a command.

    SIGTERM is handled as Ctrl-C, so that a stopped job cleans up too. Exit code 2 means an error that the
    user can mend, 130 an interrupt.

    Args:
        name: of the console script, the beginning of every message.
        options: draccus dataclass of its options.
        command: does the work and returns what to print on standard output.
        interrupted: message after an interrupt, with the way to resume.
        log: package whose messages are shown from level INFO, and those of others as errors only; None shows
            warnings of every package.
    """
    logging.basicConfig(format="%(message)s", force=True)  # importing LeRobot has set another format
    if log is not None:
        for package, level in ((None, logging.ERROR), ("lerobot", logging.ERROR), (log, logging.INFO)):
            logging.getLogger(package).setLevel(level)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if {"-h", "--help"} & set(sys.argv):
        _describe_flags(options)
    try:
        text = command(draccus.parse(options))
    except KeyboardInterrupt:
        _exit(name, interrupted, 130)
    except (OSError, ValueError, RuntimeError, DraccusException) as error:
        _exit(name, describe_error(error), 2)
    if text:
        print(text)


def describe_error(error: Exception) -> str:
    """Describe an error in one line; for a full disk with the way to resume."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error}). What is finished stays: make room and give the same command again."
        )
    return str(error)


def _exit(name: str, message: str, code: int) -> Any:
    print(f"{name}: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def _describe_flags(options: type) -> None:
    """Show in draccus's help the descriptions of options that stand in the docstring.

    It changes classes, the options' own and draccus's: it is for a process that prints help and exits.

    Args:
        options: a draccus dataclass.
    """
    # Imported here, because commands need it for their help only.
    from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType
    from draccus.wrappers import docstring, suppressing_argparse

    # draccus also searches the source for comments, and takes code below a group of options for one.
    docstring.get_attribute_docstring = lambda *_: docstring.AttributeDocString()
    # It adds the flag of a group's configuration file twice, and would show both.
    group = suppressing_argparse._SuppressingArgumentGroup
    group._remove_action = _ArgumentGroup._remove_action  # type: ignore[method-assign]  # undoes its override
    expert = Section(_EXPERT, "param", SectionType.MULTIPLE)
    _move_descriptions(options, GoogleParser([*DEFAULT_SECTIONS, expert]))


def _move_descriptions(options: type, parser: "GoogleParser") -> None:
    """Move descriptions from the docstring to the fields, of a class and of its groups of options."""
    descriptions: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(options.__mro__)):
        for param in parser.parse(base.__doc__ or "").params:
            text = " ".join((param.description or "").split())
            descriptions |= dict.fromkeys(map(str.strip, param.arg_name.split(",")), text)
    types = get_type_hints(options)
    for field in fields(options):
        if is_dataclass(types[field.name]):
            _move_descriptions(types[field.name], parser)
        elif field.name in descriptions:
            shown = {"help": descriptions[field.name].rstrip(".").replace("%", "%%")}
            if field.default is MISSING and field.default_factory is MISSING:
                shown |= {"help": f"{shown['help']} (required)", "default": SUPPRESS}
            field.metadata = MappingProxyType({**field.metadata, "custom_args": shown})
    own = parser.parse(options.__doc__ or "")
    options.__doc__ = "\n\n".join(filter(None, (own.short_description, own.long_description)))
