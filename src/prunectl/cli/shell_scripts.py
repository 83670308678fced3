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

from enum import StrEnum

VARIABLE = "_PRUNECTL_COMPLETE"


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
