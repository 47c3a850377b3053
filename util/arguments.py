"""The table of options and the parser in front of it: argparse without guessing."""

from __future__ import annotations

import argparse
import difflib
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from util.errors import UserError

WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def boolean(text: str) -> bool:
    """true/false, yes/no, on/off, 1/0."""
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"is a boolean: write true or false, not {text!r}")
    return WORDS[text.lower()]


def integer(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            bound = f" and at most {most}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"takes a whole number of at least {least}{bound}, not {text!r}")
        return value

    return parse


def real_number(
    least: float = -math.inf, most: float = math.inf, above: bool = False
) -> Callable[[str], float]:
    """A finite number from `least` (excluded where `above`) to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not least <= value <= most or (above and value == least):
            bound = f"above {least:g}" if above else f"of at least {least:g}"
            bound += f" and at most {most:g}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"takes a number {bound}, not {text!r}")
        return value

    return parse


def count_or_inf(text: str) -> float | int:
    """A positive whole number, or inf for no limit."""
    return math.inf if text.lower() in ("inf", "infinity") else integer(1)(text)


def layer_list(text: str) -> list[int]:
    """Comma-separated layer numbers, ascending and without repeats, as 0,4,8."""
    try:
        layers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        layers = []
    if not layers or layers != sorted(set(layers)) or layers[0] < 0:
        raise argparse.ArgumentTypeError(f"takes ascending layer numbers such as 0,4,8,12,16, not {text!r}")
    return layers


def gpu_list(text: str) -> list[int]:
    """One GPU number, or -1 for the CPU (the empty list)."""
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a GPU number, or -1 for the CPU, not {text!r}") from None
    if len(ids) > 1:
        raise argparse.ArgumentTypeError(
            f"takes one GPU: for the {len(ids)} of {text!r} use "
            f"torchrun --nproc_per_node={len(ids)} train.py ..."
        )
    return [i for i in ids if i >= 0]


def read_words(path: Path) -> list[str]:
    """The words of a command line in a file, without comments (# to the end of a line)."""
    try:
        return shlex.split(path.read_text(encoding="utf-8"), comments=True)
    except ValueError as error:  # unbalanced quotes, or no text
        raise UserError(f"{path} holds no words of a command line: {error}") from None


@dataclass(frozen=True)
class Option:
    """A row of the table of options.

    Attributes:
        default: a bool makes the option a boolean, accepted bare and with a value.
        shown: the default in words.
        only: values of other options without which this one has no effect, by option.
        scope: "run": saved with the run and taken over by --continue_train, free to change there;
            "fixed": the same, but it cannot change; "watch": as "run", and changes neither weights nor
            losses; "call": belongs to one call.
    """

    name: str
    default: object
    help: str
    type: Callable = str
    choices: Sequence[str] | None = None
    shown: str | None = None
    only: Mapping[str, tuple] | None = None
    scope: str = "run"

    def described(self) -> str:
        """The help with the default."""
        shown = as_text(self.default) if self.shown is None else self.shown
        return f"{self.help} (default: {shown})" if shown else self.help

    def restored(self, value: object) -> object:
        """A value read from a file, as the command line would have given it; else ValueError."""
        if value == self.default and type(value) is type(self.default):
            return value
        convert, kinds = self.type, (str, int, float, list)
        if isinstance(self.default, bool):
            convert, kinds = boolean, (str, bool)
        elif self.type is str:
            kinds = (str,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"it is {value!r}")
        try:
            value = convert(as_text(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"it {error}") from None
        if self.choices and value not in self.choices:
            raise ValueError(f"it is {value!r}, not one of {', '.join(map(str, self.choices))}")
        return value


def as_text(value: object) -> str:
    """The value of an option as it is typed."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def note_no_effect(reasons: Mapping[str, str]) -> None:
    """Print one line on stderr for each reason why options have no effect; `reasons` by option."""
    flags: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        flags.setdefault(reason, []).append(f"--{name}")
    for reason, names in flags.items():
        print(f"note: no effect of {', '.join(names)}: {reason}", file=sys.stderr)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with no guessing: no abbreviations, and an unknown option is answered with its nearest name.

    Options are declared with `add`; parsing separates given values from defaults, so that saved options and a
    model's own defaults can stand between the two.

    Args:
        absent: names of options that other programs have, each with what to say to whoever gives it.
        ignored: names of options of other programs that are accepted and do nothing, each with the reason.

    Attributes:
        options: the table, by name.
        defaults: the default of each.
    """

    def __init__(
        self,
        absent: Mapping[str, str] | None = None,
        ignored: Mapping[str, str] | None = None,
        **kwargs,
    ):
        super().__init__(
            allow_abbrev=False, argument_default=argparse.SUPPRESS, formatter_class=_HelpFormatter, **kwargs
        )
        self.options: dict[str, Option] = {}
        self.absent, self.ignored = absent or {}, ignored or {}
        for name in self.ignored:
            self.add_argument(f"--{name}", nargs="?", help=argparse.SUPPRESS)
        self._group = self

    @property
    def defaults(self) -> dict[str, object]:
        return {name: option.default for name, option in self.options.items()}

    def group(self, title: str) -> None:
        """Options declared from here on are listed under `title`."""
        self._group = self.add_argument_group(title)

    def add(self, flag: str, default: object, help: str, **row) -> None:
        """Declare `flag`; `row` are further attributes of `Option`."""
        name = flag.lstrip("-")
        option = self.options[name] = Option(name, default, help, **row)
        if isinstance(default, bool):
            how = {"type": boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
        else:
            metavar = None if option.choices else name.upper().split("_")[-1]
            how = {"type": option.type, "choices": option.choices, "metavar": metavar}
        self._group.add_argument(flag, help=option.described(), **how)

    def parse_given(self, argv: Sequence[str] | None) -> dict[str, object]:
        """The options given in `argv` (None: the command line), no others. Exits with status 2 if wrong."""
        given, unknown = self.parse_known_args(argv)
        for word in unknown:
            if word.startswith("--"):
                flag = word.split("=")[0]
                self.error(f"unknown option {flag}{self._advice(flag[2:])}")
        if unknown:
            self.error(
                f"cannot place {unknown[0]!r}: every value follows an option such as --name, one with spaces "
                "in quotes; --help lists all"
            )
        values = vars(given)
        note_no_effect({name: self.ignored[name] for name in values if name in self.ignored})
        return {name: value for name, value in values.items() if name not in self.ignored}

    def _advice(self, name: str) -> str:
        """What to say of an unknown option: its name here, why it is absent, or the name that was meant."""
        if name in self.absent:
            return f": {self.absent[name]}"
        known = {own.lower(): own for own in self.options}
        longer = [own for own in known if own.startswith(name.lower()) and len(name) > 2]
        alike = [own for own in known if own[0] == name[:1].lower()]  # typing errors spare the first letter
        near = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=0.7) or longer
        return f": did you mean --{known[near[0]]}?" if near else "; --help lists all"

    def error(self, message: str) -> None:
        """Say what is wrong and exit with status 2, without the page of usage."""
        self.exit(2, f"error: {message}\n")


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=120)

    def _format_usage(self, usage, actions, groups, prefix) -> str:
        return f"usage: python {self._prog} [options]\n\n"
