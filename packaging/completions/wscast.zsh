#compdef wscast
# zsh completion for wscast. Installed as _wscast in a directory of $fpath,
# such as /usr/share/zsh/vendor-completions.

local -a commands
commands=(
    'publish:send a message to everybody on a channel'
    'subscribe:print what is published, as a local process'
    'listen:print what a WebSocket client receives'
    'status:report clients, channels, rates, the log, version and uptime'
    'doctor:check the installation and say what mends it'
    'token:make a token that lets a WebSocket client in'
    'version:print the version'
    'help:explain a command'
)

if (( CURRENT == 2 )); then
    _describe -t commands command commands
    return
fi

local command=$words[2]
local -a socket help
socket=('--socket[the publish socket of wscastd]:socket:_files')
help=('(- *)--help[explain the command]')
shift words
(( CURRENT-- ))

case $command in
    publish)
        # Flags stand only before the channel: -A ends them at the first argument.
        _arguments -A '-*' $socket $help \
            '--lines[publish each line of standard input as a message]' \
            '--id[publish nothing if the log has a message with this id]:id: ' \
            '1:channel: ' '2:message: ' ;;
    subscribe)
        _arguments $socket $help \
            '--pattern[the arguments are patterns of channels]' \
            '*:channel: ' ;;
    listen)
        _arguments $help \
            '--origin[send this Origin]:origin: ' \
            '1:url: ' ;;
    status)
        _arguments $socket $help '--json[print a JSON object]' ;;
    doctor)
        _arguments $socket $help '--clients[judge limits for so many clients]:clients: ' ;;
    token)
        _arguments $help \
            '--key[the file with the secret or the private key]:key:_files' \
            '--subject[the name of the client]:name: ' \
            '*--channel[channels to subscribe to]:channel: ' \
            '*--publish[channels to publish to]:channel: ' \
            '--expires[the time until it expires]:time: ' ;;
    help)
        commands=(${commands:#help:*})
        _describe -t commands command commands ;;
esac
