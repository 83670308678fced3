# Completes prunectl in bash. Made by `make completions`.
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
