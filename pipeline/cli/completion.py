"""Shell completion: a script that holds the words itself, so that a TAB starts no Python.

graftline --completion bash > ~/.local/share/bash-completion/completions/graftline
graftline --completion fish > ~/.config/fish/completions/graftline.fish
graftline --completion zsh > DIR/_graftline, with DIR in fpath
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from graftline.pipeline.cli.conf_files import HIDDEN, Key, groups, keys, options, stages

BASH = r"""# bash breaks words at "=": the word is read off the line, and what stands before the "=" is cut again
_graftline() {
    local line="${COMP_LINE:0:COMP_POINT}" words
    local word="${line##* }" stage="${COMP_WORDS[1]}"
    [ "$COMP_CWORD" = 1 ] && stage=
    case "$stage" in
@CASES
    *) words= ;;
    esac
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "${words// /$'\n'}" -- "$word"))
    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
    [[ "$word" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
    return 0
}
complete -o default -F _graftline graftline
"""
ZSH = r"""#compdef graftline
_graftline() {
    local words_of_stage stage="$words[2]"
    (( CURRENT == 2 )) && stage=
    case "$stage" in
@CASES
    *) words_of_stage= ;;
    esac
    compadd -S '' -- ${=words_of_stage} || _files
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _graftline "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _graftline graftline
fi
"""


def script(folders: Sequence[Path], shell: str) -> str:
    """Return the completion script of a shell: bash, zsh or fish."""
    read = cache(keys)  # an option is one of many stages
    words = {"": [*stages(folders), "config", "--help", "--completion"]}
    words |= {
        stage: [*_words(folders, file, read), "--help", "--config-dir"] for stage, file in stages(folders).items()
    }
    words["config"] = words["train"]
    if shell == "fish":
        lines = [f"complete -c graftline -n __fish_use_subcommand -f -a '{' '.join(words.pop(''))}'"]
        lines += [
            f"complete -c graftline -n '__fish_seen_subcommand_from {stage}' -a '{' '.join(of)}'"
            for stage, of in words.items()
        ]
        return "\n".join(lines)
    name, template = ("words", BASH) if shell == "bash" else ("words_of_stage", ZSH)
    cases = "\n".join(f"    '{stage}') {name}='{' '.join(of)}' ;;" for stage, of in words.items())
    return template.replace("@CASES", cases)


def _words(folders: Sequence[Path], file: Path, read: Callable[[Path], list[Key]]) -> list[str]:
    """Return what may stand behind a stage: options of its groups, and keys."""
    words = [f"{key.name}=" for key in read(file)]
    for group in groups(file):
        for name, option in options(folders, group).items():
            if name not in HIDDEN:
                words.append(f"{group}={name}")
            if "@package" not in option.read_text("utf-8"):
                words += [f"{group}.{key.name}=" for key in read(option)]
    return list(dict.fromkeys(words))
