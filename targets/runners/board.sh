# Runs on a board, in its own POSIX shell (dash, busybox ash, bash): takes files that are sent to it, and runs a program
# under a time limit, so that nothing of it stays when the host or the link goes. Standard input is
#
#     token, verb, work folder, limit in s, holder, KiB that may be kept, KiB that come           a line each
#     "folder DIGEST", lines as sha256sum writes them                                              for each folder
#     "keep DIGEST" for other folders that are still needed, then "end"
#     run: the Python to use (or sh), the program, the job as one line of JSON, then a line now and then while the host lives
#     put: a tar archive of the folders
#
# What it has to say goes to standard error behind "@token". Standard output is the program's, after "@token begin".
# Time is counted in sleeps, never read from a clock: boards set theirs when the network comes up.

umask 077
trap '' PIPE # the host may be gone when something is said
patience=20  # seconds without a line from the host

say() { printf '@%s %s\n' "$token" "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

# One run at a time. The kernel lets go of the lock with its last holder. Where flock is missing or of no use, a link names
# boot and process of the holder.
lock() {
    touch "$work/lock" || fail no-folder # where a redirection fails, the shell ends
    exec 9>>"$work/lock"
    flock -n 9 2>/dev/null
    case $? in
    0) ;;
    1) fail busy "$(cat "$work/holder" 2>/dev/null)" ;;
    *) link_lock ;;
    esac
    trap clean EXIT
    trap 'end; exit 143' HUP INT TERM
    trap 'why=limit' USR1
    trap 'why=gone' USR2
    trap 'why=silent' ALRM
    printf '%s\n' "$holder" 2>/dev/null >"$work/holder"
}

link_lock() {
    boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
    tries=0
    until ln -s "$boot:$$" "$work/lock-link" 2>/dev/null; do
        held=$(readlink "$work/lock-link")
        tries=$((tries + 1))
        if [ "$tries" -gt 3 ] || { [ "${held%:*}" = "$boot" ] && kill -0 "${held##*:}" 2>/dev/null; }; then
            fail busy "$(cat "$work/holder" 2>/dev/null)"
        fi
        rm -f "$work/lock-link"
    done
    locked=$work/lock-link
}

clean() {
    rm -rf "$work/incoming" "$work/holder"
    [ -z "$locked" ] || rm -f "$locked"
}

# Kills the work with its children.
end() {
    [ -z "$group" ] || {
        kill -KILL "-$group" 2>/dev/null # without "--", which dash and ash take for a number
        kill -KILL "$group" 2>/dev/null  # should it not have become a group yet
    }
}

# For the two below: tells the main shell why (by signal: it must not wait for anybody to read), then kills.
end_by() {
    kill "-$1" $$
    end
}

watch() {
    silent=0 elapsed=0
    trap 'silent=0' USR1
    while [ "$elapsed" -lt "$limit" ]; do
        sleep 1 >/dev/null 2>&1 3<&- 9>&-
        kill -0 "$group" 2>/dev/null || return
        elapsed=$((elapsed + 1)) silent=$((silent + 1))
        [ -z "$beats" ] || [ "$silent" -lt "$patience" ] || {
            end_by ALRM
            return
        }
    done
    end_by USR1
}

listen() {
    while IFS= read -r _ <&3; do
        kill -USR1 "$watcher" 2>/dev/null || break
    done
    end_by USR2
}

# Waits for the background process $1 and sets $code. With $beats, the host must be heard of too.
supervise() {
    group=$1
    watch 9>&- &
    watcher=$!
    listener=
    if [ -n "$beats" ]; then
        listen 9>&- &
        listener=$!
    fi
    wait "$group" 2>/dev/null
    code=$?
    # shellcheck disable=SC2086 # there may be no listener
    kill -KILL $watcher $listener 2>/dev/null # TERM may be lost while a shell forks
    # shellcheck disable=SC2086
    wait $watcher $listener 2>/dev/null
    end
    group=
    [ "$why" != silent ] || kill $PPID # sshd would hold the dead connection for hours
    [ -z "$why" ] || fail ended "$why"
}

# Whether folder $1 holds what the sums $2 say.
holds() { [ -d "$1" ] && (cd "$1" && printf '%s' "$2" | sha256sum -c - >/dev/null 2>&1); }

# Sets $keys, and $sums_KEY for each of them; $needed are others that must stay.
read_folders() {
    keys='' needed=''
    while IFS= read -r line && [ "$line" != end ]; do
        case $line in
        "folder "*)
            key=${line#folder }
            keys="$keys $key"
            eval "sums_$key="
            ;;
        "keep "*)
            needed="$needed ${line#keep }"
            ;;
        *)
            eval "sums_$key=\$sums_$key\$line\$newline"
            ;;
        esac
    done
}
newline='
'

# Forgets the folders that were not used for longest, as far as all of them take more than $1 KiB.
tidy() {
    kept=0
    for old in $(ls -t "$work/files"); do
        size=$(du -sk "$work/files/$old")
        kept=$((kept + ${size%%[!0-9]*}))
        case "$keys$needed " in
        *" $old "*) ;;
        *) [ "$kept" -le "$1" ] || rm -rf "$work/files/$old" ;;
        esac
    done
}

free_kib() {
    # shellcheck disable=SC2046 # the fields of the last line
    set -- $(df -Pk "$work" | tail -n 1)
    printf '%s' "$4"
}

put() {
    rm -rf "$work/incoming"
    mkdir "$work/incoming" || fail no-folder
    tidy "$room"
    [ "$(free_kib)" -ge "$coming" ] || tidy 0
    [ "$(free_kib)" -ge "$coming" ] || fail full "$(free_kib)"
    # shellcheck disable=SC2086 # empty where there is no setsid
    LC_ALL=C $alone tar -xof - -C "$work/incoming" <&3 >/dev/null 9>&- &
    beats=
    supervise $!
    [ "$code" -eq 0 ] || fail untar "$code"
    for key in $keys; do
        eval "sums=\$sums_$key"
        holds "$work/incoming/$key" "$sums" || fail damaged "$key"
        rm -rf "$work/files/$key"
        mv "$work/incoming/$key" "$work/files/$key" || fail no-folder
    done
    say stored
}

run() {
    missing=
    for key in $keys; do
        eval "sums=\$sums_$key"
        if holds "$work/files/$key" "$sums"; then
            touch "$work/files/$key"
        else
            [ ! -d "$work/files/$key" ] || say damaged "$key"
            missing="$missing $key"
        fi
    done
    [ -z "$missing" ] || fail "missing$missing"
    command -v "$python" >/dev/null || fail no-python
    [ -n "$alone" ] || [ "$python" != sh ] || fail no-tool setsid
    printf '@%s begin\n' "$token"
    beats=yes
    if [ -n "$alone" ]; then
        printf '%s\n' "$job" | setsid "$python" "$work/files/$program" /dev/stdin 3<&- 9>&- &
    else
        printf '%s\n' "$job" | "$python" -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])' \
            "$python" "$work/files/$program" /dev/stdin 3<&- 9>&- &
    fi
    supervise $!
    say exit "$code"
}

exec 3<&0
group='' locked='' beats='' why=''
IFS= read -r token
read -r verb
IFS= read -r work
read -r limit
IFS= read -r holder
read -r room
read -r coming
mkdir -p "$work/files" && [ -w "$work" ] || fail no-folder
command -v sha256sum >/dev/null || fail no-tool sha256sum
alone=$(command -v setsid >/dev/null && echo setsid)
lock
read_folders
case $verb in
run)
    IFS= read -r python
    IFS= read -r program
    IFS= read -r job
    run
    ;;
put)
    command -v tar >/dev/null || fail no-tool tar
    put
    ;;
esac
