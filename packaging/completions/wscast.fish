# fish completion for wscast. Installed as /usr/share/fish/vendor_completions.d/wscast.fish.

complete -c wscast -f

complete -c wscast -n __fish_use_subcommand -a publish -d 'send a message to everybody on a channel'
complete -c wscast -n __fish_use_subcommand -a subscribe -d 'print what is published, as a local process'
complete -c wscast -n __fish_use_subcommand -a listen -d 'print what a WebSocket client receives'
complete -c wscast -n __fish_use_subcommand -a status -d 'report clients, channels, rates, the log, version and uptime'
complete -c wscast -n __fish_use_subcommand -a doctor -d 'check the installation and say what mends it'
complete -c wscast -n __fish_use_subcommand -a token -d 'make a token that lets a WebSocket client in'
complete -c wscast -n __fish_use_subcommand -a version -d 'print the version'
complete -c wscast -n __fish_use_subcommand -a help -d 'explain a command'
complete -c wscast -n __fish_use_subcommand -l version -d 'print the version'
complete -c wscast -l help -d 'explain the command'

complete -c wscast -n '__fish_seen_subcommand_from publish subscribe status doctor' -l socket -r -F -d 'the publish socket of wscastd'
complete -c wscast -n '__fish_seen_subcommand_from publish' -l lines -d 'publish each line of standard input as a message'
complete -c wscast -n '__fish_seen_subcommand_from publish' -l id -x -d 'publish nothing if the log has a message with this id'
complete -c wscast -n '__fish_seen_subcommand_from subscribe' -l pattern -d 'the arguments are patterns of channels'
complete -c wscast -n '__fish_seen_subcommand_from listen' -l origin -x -d 'send this Origin'
complete -c wscast -n '__fish_seen_subcommand_from status' -l json -d 'print a JSON object'
complete -c wscast -n '__fish_seen_subcommand_from doctor' -l clients -x -d 'judge limits for so many clients'
complete -c wscast -n '__fish_seen_subcommand_from token' -l key -r -F -d 'the file with the secret or the private key'
complete -c wscast -n '__fish_seen_subcommand_from token' -l subject -x -d 'the name of the client'
complete -c wscast -n '__fish_seen_subcommand_from token' -l channel -x -d 'channels to subscribe to'
complete -c wscast -n '__fish_seen_subcommand_from token' -l publish -x -d 'channels to publish to'
complete -c wscast -n '__fish_seen_subcommand_from token' -l expires -x -d 'the time until it expires'
complete -c wscast -n '__fish_seen_subcommand_from help' -a 'publish subscribe listen status doctor token version'
