"""How a setting is spelled on the command line: what a field of a settings class carries.

    sparsity: Annotated[float | None, Option("Share of the weights.", "S", short="-s")] = None

This is plain data. :mod:`prunectl.cli.signatures` makes the options of a command from it, with the
name, the type and the default of the field; whoever uses the settings from Python may ignore it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from prunectl.device import check_device
from prunectl.errors import InvalidOption

HEADINGS = (
    PRUNING := "What to prune",
    MEASURING := "What to measure",
    COMPARING := "What to compare",
    TRAINING := "Training",
    CALIBRATION := "Calibration",
    COMPUTING := "Device",
    OUTPUT := "Output",
    PUSHING := "Publishing",
    HUB := "Hub",
    COMMON := "Common",
)
"""Headings of the help, in this order."""


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """An option, or an argument, of a command.

    Attributes:
        help: its purpose, in a sentence or two.
        metavar: the placeholder of its value in the help. Completion has its own values for MODEL,
            REV, SOURCE, DIR and FILE.
        heading: its heading in the help.
        name: its long form; default: the field's name with dashes.
        short: its short form.
        is_argument: whether it is positional.
        values: the values that completion offers, with their meanings.
        suffix: the suffix of files that completion offers for a FILE.
        read: converts the text, or the list of texts if it repeats, to the field's value.
        repeats: whether it may be given several times, as every option may whose field is a tuple
            of texts.
        least: the smallest valid number.
        shows_default: whether the help states the default.
    """

    help: str
    metavar: str = ""
    heading: str = COMMON
    name: str = ""
    short: str = ""
    is_argument: bool = False
    values: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""
    read: Callable[[Any], Any] | None = None
    repeats: bool = False
    least: int | None = None
    shows_default: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """The fields of a settings class that become options; by default all with an :class:`Option`.

    Attributes:
        only: names of fields; if any, no other fields become options.
        without: names of fields to leave out, if ``only`` is empty.
        instead: options of this command that replace those of the fields.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    instead: Mapping[str, Option] = field(default_factory=dict)


class Explained(StrEnum):
    """A closed set of values with their meanings: ``ROW = "row", "a threshold for each row"``.

    Attributes:
        meaning: a few words, for completion.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Make a member, which equals its value; or return an existing one, by its value alone."""
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member


DEVICES = {
    "cpu": "the processor",
    "cuda": "the first CUDA device; of several processes on a host, each its own",
    "cuda:1": "the second one, and so on",
}
DTYPES = {
    "auto": "that of the checkpoint; where a metric or a calibration runs on the CPU, float32",
    "float32": "4 bytes a weight",
    "bfloat16": "2 bytes, with the range of float32",
    "float16": "2 bytes, with more digits",
}


def device_option(auto: str, text: str = "") -> Option:
    """The option ``--device``. A device that does not exist is refused before a model is fetched.

    Args:
        auto: the meaning of ``auto``.
        text: the help, if it has more to explain.
    """
    text = text or f"Where it computes: auto ({auto}), cpu, cuda or cuda:N."
    values = {"auto": auto, **DEVICES}
    return Option(text, "DEVICE", COMPUTING, values=values, read=_checked_device)


def dtype_option(auto: str) -> Option:
    """The option ``--dtype`` of a model's weights; ``auto`` is what that means."""
    text = f"dtype of the weights in memory; auto: {auto}."
    return Option(text, "DTYPE", COMPUTING, values=DTYPES)


def _checked_device(name: str) -> str:
    check_device(name)
    return name


def parts_of(texts: list[str]) -> list[str]:
    """The parts of all texts, split at commas."""
    return [part.strip() for text in texts for part in text.split(",")]


def shares_of(texts: list[str]) -> tuple[float, ...]:
    """The numbers of ``--sparsity``, from texts with commas or from several options.

    Raises:
        InvalidOption: a part is not a number.
    """
    found = []
    for part in parts_of(texts):
        try:
            found.append(float(part))
        except ValueError:
            raise InvalidOption(
                f"--sparsity '{part}' is not a number", hint="shares such as 0.1,0.2,0.4"
            ) from None
    return tuple(found)


def seeds_of(text: str) -> tuple[int, ...]:
    """The integers of ``--seeds``.

    Raises:
        InvalidOption: a part is not an integer.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidOption(
            f"--seeds '{text}' is not valid", hint="whole numbers with commas, such as 0,1,2"
        ) from None
