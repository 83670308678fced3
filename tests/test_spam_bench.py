"""The mails that benchmarks classify: what is kept of them, and which are held out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import essential
import spam

PLAIN = """Received: from nowhere
Subject: =?utf-8?q?Caf=C3=A9?=
 and more
Content-Type: text/plain; charset=no-such-charset

Hello,

  how  are
you
"""
MARKUP = """From nobody Mon Sep  9 2002
Content-Type: multipart/mixed; boundary="x"

--x
Content-Type: text/html; charset=iso-8859-1
Content-Transfer-Encoding: base64

PGh0bWw+PHN0eWxlPnAge308L3N0eWxlPjxwPkJ1eSAmYW1wOyBzYXZlPC9wPjwhLS0gbm8gLS0+PC9odG1sPg==
--x--
"""


def test_subject_and_body_are_kept_as_they_are_read() -> None:
    assert spam.text_of(PLAIN) == "Café and more\nHello,\nhow are\nyou"
    assert spam.text_of(MARKUP) == "Buy & save"
    assert spam.text_of("Subject: x\n\n" + "y" * 9000) == ("x\n" + "y" * 9000)[: spam.LONGEST]
    assert spam.text_of("") == ""


def test_every_fifth_mail_of_a_group_is_held_out(tmp_path: Path) -> None:
    archive = tmp_path / "mails.tgz"
    names = {
        f"package/data/{group}/{at:05}.{'0' * 32}.json": f"Subject: {group}\n\n{at // 2 * 2}"
        for group in ("easy-ham-1", "spam-2")
        for at in range(20)
    }
    with tarfile.open(archive, "w:gz") as package:
        for name, text in [
            *names.items(),
            ("package/data/spam-2/file.json", ""),
            ("../x.json", ""),
        ]:
            data = json.dumps({"text": text}).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))
    spam.unpack(archive, tmp_path / "made")
    found = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "made").iterdir()
    }
    assert found.keys() == {"train", "test"}
    # Each text was there twice.
    assert [len(found["train"]), len(found["test"])] == [16, 4]
    assert found["test"] == [
        {"text": f"{group}\n{at}", "label": label}
        for group, label in (("easy-ham-1", "ham"), ("spam-2", "spam"))
        for at in (8, 18)
    ]


def test_the_sweep_s_command_is_one_that_prunectl_takes(
    tmp_path: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    """It stops at the model, which is not there: all options have been read by then."""
    command = essential.command(tmp_path / "model", tmp_path / "mails", "--train-samples", "9")
    assert command[1:3] == ["-m", "prunectl"]
    code, _, err = typed(*command[3:])
    assert code == 1
    assert "model" in err
    assert "option" not in err
