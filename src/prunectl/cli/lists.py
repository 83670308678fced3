"""Lists that are given as several options, or with commas in one."""

from __future__ import annotations

from prunectl.errors import InvalidOption


def parts_of(texts: list[str] | None) -> list[str]:
    """The parts between commas of all texts."""
    return [part.strip() for text in texts or [] for part in text.split(",")]


def numbers_of(texts: list[str] | None, option: str) -> tuple[float, ...]:
    """The same as numbers.

    Raises:
        InvalidOption: a part is none; ``option`` is what it was given for.
    """
    found = []
    for part in parts_of(texts):
        try:
            found.append(float(part))
        except ValueError:
            raise InvalidOption(
                f"{option} '{part}' is not a number", hint="shares such as 0.1,0.2,0.4"
            ) from None
    return tuple(found)


def seeds_of(text: str) -> tuple[int, ...]:
    """The whole numbers of ``--seeds``.

    Raises:
        InvalidOption: a part is none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidOption(
            f"--seeds '{text}' is not valid", hint="whole numbers with commas, such as 0,1,2"
        ) from None
