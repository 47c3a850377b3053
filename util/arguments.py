"""The table of options and the parser in front of it: argparse without guessing."""

import argparse
import contextlib
import difflib
import math
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from util.errors import UserError


def boolean(text: str) -> bool:
    """true/false, yes/no, on/off, 1/0."""
    for value, words in ((True, ("true", "yes", "on", "1")), (False, ("false", "no", "off", "0"))):
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"is a boolean: write true or false, not {text!r}")


def _number(kind: type, least: float = -math.inf, most: float = math.inf, above: bool = False) -> Callable:
    """The parser of a finite number from `least` (excluded where `above`) to `most`."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value <= most and abs(value) < math.inf and not (above and value == least):
                return value
        noun = "a whole number" if kind is int else "a number"
        bound = f"above {least:g}" if above else f"of at least {least:g}"
        bound += f" and at most {most}" if most < math.inf else ""
        raise argparse.ArgumentTypeError(f"takes {noun} {bound}, not {text!r}")

    return parse


integer, real_number = partial(_number, int), partial(_number, float)


def count_or_inf(text: str) -> float | int:
    """A positive whole number, or inf for no limit."""
    return math.inf if text.lower() in ("inf", "infinity") else integer(1)(text)


def layer_list(text: str) -> list[int]:
    """Comma-separated layer numbers, ascending and without repeats, as 0,4,8."""
    with contextlib.suppress(ValueError):
        layers = [int(part) for part in text.split(",")]
        if layers == sorted(set(layers)) and layers[0] >= 0:
            return layers
    raise argparse.ArgumentTypeError(f"takes ascending layer numbers such as 0,4,8,12,16, not {text!r}")


def some_of(known: Collection[str]) -> Callable:
    """The parser of a list, with commas, of `known` names."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"names {name!r}, but there are {', '.join(known)}")
        return names

    return parse


def gpu_list(text: str) -> list[int]:
    """One GPU number, or -1 for the CPU (the empty list)."""
    try:
        return [number] if (number := int(text)) >= 0 else []
    except ValueError:
        several = "for several use torchrun --nproc_per_node=N train.py ..."
        message = f"takes a GPU number, or -1 for the CPU, not {text!r}; {several}"
        raise argparse.ArgumentTypeError(message) from None


def read_words(path: Path) -> list[str]:
    """The words of a command line in a file, without comments (# to the end of a line)."""
    try:
        return shlex.split(path.read_text(encoding="utf-8"), comments=True)
    except ValueError as error:  # unbalanced quotes, or no text
        raise UserError(f"{path} holds no words of a command line: {error}") from None


@dataclass(frozen=True)
class Option:
    """A row of the table of options.

    An option of `scope` "call" belongs to one call. The others are saved and taken over by --continue_train:
    "run" may change there, "fixed" may not, and "watch" changes neither weights nor losses.
    """

    name: str
    default: object  # a bool makes the option a boolean, accepted bare and with a value
    help: str
    type: Callable = str
    choices: Sequence[str] | None = None
    shown: str | None = None  # the default in words
    only: Mapping[str, tuple] | None = None  # values of other options without which it has no effect
    scope: str = "run"

    def restored(self, value: object) -> object:
        """A value read from a file, as the command line would have given it; else ValueError."""
        if value == self.default and type(value) is type(self.default):
            return value
        convert = boolean if isinstance(self.default, bool) else self.type
        try:
            value = convert(as_text(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--{self.name} {error}") from None
        if self.choices and value not in self.choices:
            raise ValueError(f"--{self.name} is {value!r}, not one of {', '.join(map(str, self.choices))}")
        return value


def as_text(value: object) -> str:
    """The value of an option as it is typed."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def note_no_effect(names: Collection[str], reason: str) -> None:
    """Say on stderr that the options of these names, if any, have no effect."""
    if names:
        flags = ", ".join(f"--{name}" for name in names)
        print(f"note: no effect of {flags}: {reason}", file=sys.stderr)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with no guessing. `parse_given` leaves out defaults, so that saved options and a model's
    defaults can stand between the two. `ignored` options are accepted and do nothing.
    """

    def __init__(self, prog: str, description: str, ignored: Collection[str] = (), **how):
        shape = partial(argparse.HelpFormatter, max_help_position=34, width=120)
        how |= {"allow_abbrev": False, "argument_default": argparse.SUPPRESS, "formatter_class": shape}
        super().__init__(prog, "python %(prog)s [options]", description, **how)
        self.options: dict[str, Option] = {}
        self.ignored = ignored
        for name in ignored:
            self.add_argument(f"--{name}", nargs="?", help=argparse.SUPPRESS)
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        self._group, self._common = self, {}

    @property
    def defaults(self) -> dict[str, object]:
        return {name: option.default for name, option in self.options.items()}

    def group(self, title: str, **common) -> None:
        """Options declared from here on are listed under `title`; `common` is part of each of their rows."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        self._group, self._common = self._groups[title], common

    def add(self, flag: str, default: object, help: str, **row) -> None:
        """Declare `flag`; `row` are further attributes of `Option`."""
        name = flag.lstrip("-")
        option = self.options[name] = Option(name, default, help, **{**self._common, **row})
        if isinstance(default, bool):
            how = {"type": boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
        else:
            metavar = None if option.choices else name.upper().split("_")[-1]
            how = {"type": option.type, "choices": option.choices, "metavar": metavar}
        shown = as_text(default) if option.shown is None else option.shown
        self._group.add_argument(flag, help=f"{help} (default: {shown})" if shown else help, **how)

    def parse_given(self, argv: Sequence[str] | None) -> dict[str, object]:
        """The options given in `argv` (None: the command line), no others. Exits with status 2 if wrong."""
        given, unknown = self.parse_known_args(argv)
        for word in unknown:
            if word.startswith("--"):
                name = word[2:].split("=")[0]
                near = difflib.get_close_matches(name, self.options, n=1, cutoff=0.7)
                advice = f": did you mean --{near[0]}?" if near else "; --help lists them"
                self.error(f"unknown option --{name}{advice}")
            self.error(f"cannot place {word!r}: every value follows an option, one with spaces in quotes")
        note_no_effect([name for name in vars(given) if name in self.ignored], "it does nothing here")
        return {name: value for name, value in vars(given).items() if name not in self.ignored}

    def list_only(self, names: Collection[str], epilog: str) -> None:
        """Leave all other options out of --help; they are taken as well."""
        for name in self.options.keys() - set(names):
            self._option_string_actions[f"--{name}"].help = argparse.SUPPRESS
        self.epilog = epilog

    def error(self, message: str) -> None:
        """Say what is wrong and exit with status 2, without the page of usage."""
        self.exit(2, f"error: {message}\n")
