# bash completion for wscast. Installed as /usr/share/bash-completion/completions/wscast.
# It needs no function of the package bash-completion.

_wscast()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} flags=
    COMPREPLY=()

    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W 'publish subscribe listen status doctor token version help --version --help' -- "$cur")
        return
    fi
    case $prev in
        --socket|--key)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            return ;;
        --origin)
            mapfile -t COMPREPLY < <(compgen -W 'http:// https://' -- "$cur")
            compopt -o nospace 2>/dev/null
            return ;;
    esac
    case $command in
        publish)
            # Flags stand only before the channel: what follows it is the message.
            local i
            for ((i = 2; i < COMP_CWORD; i++)); do
                case ${COMP_WORDS[i]} in
                    --socket|--id) ((i++)) ;;
                    -*) ;;
                    *) return ;;
                esac
            done
            flags='--socket --lines --id --help' ;;
        subscribe) flags='--socket --pattern --help' ;;
        listen) flags='--origin --help' ;;
        status) flags='--socket --json --help' ;;
        token) flags='--key --subject --channel --publish --expires --help' ;;
        doctor) flags='--socket --clients --help' ;;
        help) flags='publish subscribe listen status doctor token version' ;;
    esac
    if [[ $command == help || $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
    fi
}

complete -F _wscast wscast
