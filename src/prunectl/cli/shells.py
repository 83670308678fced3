"""The scripts that a shell loads to complete ``prunectl``, and how they talk with Python.

A script runs ``prunectl`` with ``_PRUNECTL_COMPLETE`` set to the shell's name and the words up to
the cursor as arguments, the unfinished one last. The answer is one candidate a line: the whole
word, and after a tab what it means. Bash splits words at ``:``, ``=`` and ``@`` and quotes nothing
itself, so it sends its line as it was typed and gets back what it has to insert, without meanings.

typer has scripts of its own. They are not used: bash loses ``2:4`` and names with spaces with
them, and elsewhere each press of the key imports rich, which takes longer than all the rest and
turns the ``N:M`` of a help text into an emoji.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from enum import StrEnum

VARIABLE = "_PRUNECTL_COMPLETE"
_SAFE = frozenset(string.ascii_letters + string.digits + "_-+=:@%,./~")
_SPECIAL_IN_QUOTES = '$`"\\'


class Shell(StrEnum):
    """A shell that can complete prunectl."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


_BASH = r"""# Completes prunectl in bash. Made by `make completions`.
# In ~/.bashrc: eval "$(prunectl --show-completion bash)"

# The second argument is what readline will replace: the word from its last : = or @ on.
_prunectl() {
    local line program=${1/#\~/$HOME}
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(_PRUNECTL_COMPLETE=bash "$program" "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
}
# A word that is finished comes with its space, a folder without.
complete -o nospace -F _prunectl prunectl
"""

_ZSH = r"""#compdef prunectl
# Completes prunectl in zsh. Made by `make completions`.
# In a folder of $fpath, named _prunectl; or in ~/.zshrc, after compinit:
# eval "$(prunectl --show-completion zsh)"

_prunectl() {
    local line value program=${(Q)words[1]}
    local -a lines plain folders
    program=${program/#\~/$HOME}
    lines=("${(@f)$(_PRUNECTL_COMPLETE=zsh $program \
        "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    # What stands before the last slash is typed already; left out, it is neither listed nor quoted.
    [[ $PREFIX == */* ]] && compset -P '*/'
    for line in $lines; do
        value=${line%%$'\t'*}
        if [[ $IPREFIX == */ ]]; then
            [[ $value == */ ]] && value=${${value%/}##*/}/ || value=${value##*/}
        fi
        value=${${value//\\/\\\\}//:/\\:}
        [[ $line == *$'\t'?* ]] && value+=:${line#*$'\t'}
        if [[ ${line%%$'\t'*} == */ ]]; then folders+=$value; else plain+=$value; fi
    done
    _describe -t values value plain
    local found=$?
    _describe -t folders folder folders -S '' || return found
}
# Loaded from a folder in fpath, this file is the function's first call; sourced, it registers it.
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _prunectl "$@"
else
    compdef _prunectl prunectl
fi
"""

_FISH = r"""# Completes prunectl in fish. Made by `make completions`.
# As ~/.config/fish/completions/prunectl.fish it is found without being named.

function __prunectl_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l plain (string unescape -- "$current"; or string replace -r '^["\']' '' -- "$current")
    set -l program (string replace -r '^~' $HOME -- $words[1])
    _PRUNECTL_COMPLETE=fish $program $words[2..] "$plain" 2>/dev/null
end
complete --command prunectl --no-files --keep-order --arguments '(__prunectl_complete)'
"""

_POWERSHELL = r"""# Completes prunectl in PowerShell. Made by `make completions`.
# In $PROFILE: prunectl --show-completion powershell | Out-String | Invoke-Expression

Register-ArgumentCompleter -Native -CommandName prunectl -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $text = [System.Management.Automation.Language.StringConstantExpressionAst]
    $words = @($commandAst.CommandElements |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        ForEach-Object { if ($_ -is $text) { $_.Value } else { $_.Extent.Text } })
    $program, $before = $words
    if (-not $program) { return }
    $before = @($before | Where-Object { $_ })
    $current = $wordToComplete -replace '^[''"]', ''
    $env:_PRUNECTL_COMPLETE = 'powershell'
    try {
        # The dot keeps an empty word from being dropped on its way to the program.
        & $program @before ".$current" 2>$null | ForEach-Object {
            $value, $help = $_ -split "`t", 2
            $inserted = if ($value -match '[^\w:=./\\~+@-]') {
                "'" + ($value -replace "'", "''") + "'"
            } else { $value }
            if (-not $help) { $help = $value }
            [System.Management.Automation.CompletionResult]::new(
                $inserted, $value, 'ParameterValue', $help)
        }
    } finally {
        Remove-Item Env:_PRUNECTL_COMPLETE
    }
}
"""

SCRIPTS = {
    Shell.BASH: _BASH,
    Shell.ZSH: _ZSH,
    Shell.FISH: _FISH,
    Shell.POWERSHELL: _POWERSHELL,
}


def bash_words(line: str) -> tuple[list[str], str]:
    """The words of a command, without quotes, and the last one as it was typed.

    The last one may be empty or unfinished, with a quote that is still open.
    """
    words: list[str] = []
    start: int | None = None
    for at, (character, role) in enumerate(_characters(line)):
        if character in " \t\n" and role == "":
            if start is not None:
                words.append(_unquoted(line[start:at]))
            start = None
        elif start is None:
            start = at
    raw = "" if start is None else line[start:]
    return [*words, _unquoted(raw)], raw


def quoted_for_bash(value: str, raw: str, replaced: str) -> str:
    """What bash has to insert so that the unfinished word becomes ``value``, and a space after it.

    Args:
        value: a candidate; it starts with what ``raw`` means.
        raw: the unfinished word as it was typed.
        replaced: the end of ``raw`` that will be replaced: what follows a quote, ``:`` or ``=``.
    """
    kept = raw.removesuffix(replaced)
    text = value[len(_unquoted(kept)) :]
    quote = _open_quote(kept)
    # Bash itself closes a quote, and puts the space after it.
    if quote == "'":
        return text.replace("'", "'\\''")
    if quote == '"':
        return "".join(f"\\{c}" if c in _SPECIAL_IN_QUOTES else c for c in text)
    text = "".join(c if c in _SAFE or not c.isascii() else f"\\{c}" for c in text)
    return text if text.endswith("/") else f"{text} "


def _characters(text: str) -> Iterator[tuple[str, str]]:
    """Each character and its role.

    ``quote``: it opens or closes one, or is the backslash before a character, and means nothing
    itself. ``quoted``: it only means itself. Empty: a plain one, or a space between words.
    """
    quote, is_escaped = "", False
    for at, character in enumerate(text):
        following = text[at + 1 : at + 2]
        if is_escaped:
            is_escaped = False
            yield character, "quoted"
        elif character == "\\" and (
            not quote or (quote == '"' and following in _SPECIAL_IN_QUOTES)
        ):
            is_escaped = True
            yield character, "quote"
        elif character == quote or (not quote and character in "'\""):
            quote = "" if quote else character
            yield character, "quote"
        else:
            yield character, "quoted" if quote else ""


def _unquoted(text: str) -> str:
    return "".join(character for character, role in _characters(text) if role != "quote")


def _open_quote(text: str) -> str:
    """The quote that is open at the end; empty where none is."""
    quote = ""
    for character, role in _characters(text):
        if role == "quote" and character != "\\":
            quote = "" if quote else character
    return quote
