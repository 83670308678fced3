# Completes prunectl in fish. Made by `make completions`.
# As ~/.config/fish/completions/prunectl.fish it is found without being named.

function __prunectl_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l plain (string unescape -- "$current"; or string replace -r '^["\']' '' -- "$current")
    set -l program (string replace -r '^~' $HOME -- $words[1])
    _PRUNECTL_COMPLETE=fish $program $words[2..] "$plain" 2>/dev/null
end
complete --command prunectl --no-files --keep-order --arguments '(__prunectl_complete)'
