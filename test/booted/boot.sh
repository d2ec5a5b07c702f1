# Becomes a container. Run in a mount namespace of its own, which takes all mounts with it.
# $1 directory to work in, $2 lower directories of the overlay, $3 name of the machine, $4 a further option of systemd-nspawn or nothing,
# rest: units to enable. $DISK: where the files of the machine itself are kept, for the next boot; otherwise in memory.
set -eu
umask 022
dir=$1 lower=$2 name=$3 option=$4
shift 4
# systemd-nspawn keeps a directory of each container in /run and never removes it.
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs "$dir"
disk=${DISK:-$dir}
mkdir -p "$disk/upper" "$disk/work" "$dir/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$disk/upper,workdir=$disk/work" overlay "$dir/root"
# As a package does after it is unpacked.
chroot "$dir/root" systemd-sysusers
[ $# = 0 ] || chroot "$dir/root" systemctl --quiet enable "$@"
# --register=no --keep-unit: the host may have no systemd, and what it has is left alone. --kill-signal: SIGTERM, which comes when the
# test process dies, ends the container at once.
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn $option --quiet --directory="$dir/root" --machine="$name" --boot \
	--register=no --keep-unit --notify-ready=yes --console=pipe --link-journal=no --resolv-conf=off --timezone=off --kill-signal=SIGKILL
