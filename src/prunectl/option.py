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
"""What options stand under in the help, in this order."""


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """One option, or one argument, of a command.

    Attributes:
        help: what it is for, in a sentence or two.
        metavar: what stands for its value in the help. Completion knows what a MODEL, REV, SOURCE,
            DIR and FILE are.
        heading: what it stands under in the help.
        name: its long form; default: the field's name with dashes.
        short: its short form.
        is_argument: it is given by its place, without a name.
        values: the values that completion offers, with their meanings.
        suffix: of the files that completion offers for a FILE.
        read: makes the field's value of the text, or of the list of texts where it repeats.
        repeats: it may be given several times. So may all whose field is a tuple of texts.
        least: the smallest number that is taken.
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
    """Which fields of a settings class become options; without names: all that carry one.

    Attributes:
        only: these, and no others.
        without: all but these.
        instead: options that this command has in place of the fields' own.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    instead: Mapping[str, Option] = field(default_factory=dict)


class Explained(StrEnum):
    """A closed set of values that say what they mean: ``ROW = "row", "a threshold for each row"``.

    Attributes:
        meaning: a few words, for completion.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """A member, which equals its value; or one that there is, by its value alone."""
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
    """``--device``. A device that is not there is refused before a model is fetched.

    Args:
        auto: what ``auto`` means.
        text: the help, where it says more than that.
    """
    text = text or f"Where it computes: auto ({auto}), cpu, cuda or cuda:N."
    values = {"auto": auto, **DEVICES}
    return Option(text, "DEVICE", COMPUTING, values=values, read=_device_that_is_there)


def _device_that_is_there(name: str) -> str:
    check_device(name)
    return name


def parts_of(texts: list[str]) -> list[str]:
    """The parts between commas of all texts."""
    return [part.strip() for text in texts for part in text.split(",")]


def shares_of(texts: list[str]) -> tuple[float, ...]:
    """The numbers of ``--sparsity``, between commas or in several options.

    Raises:
        InvalidOption: one is no number.
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
    """The whole numbers of ``--seeds``.

    Raises:
        InvalidOption: one is none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidOption(
            f"--seeds '{text}' is not valid", hint="whole numbers with commas, such as 0,1,2"
        ) from None
