#!/bin/sh
# Builds and measures a TensorRT engine on the Jetson that it is started on, and prints one JSON document. Needs a POSIX
# shell (dash, BusyBox ash, bash), the usual small tools, and trtexec or, from TensorRT 10 on, a Python with the module
# tensorrt: then tensorrt_runner.py does what trtexec does. Two ways to call it:
#
#     run [build|bench] [--seconds S]    inside a bundle: checks its files, builds, and unless `build`, runs and measures
#     tensorrt.sh JOB                    one job of the development host, a line of JSON: probe or bundle
#
# What to tell trtexec is in the bundle's board.txt, release by release. The engine, the timing cache, trtexec's own reports
# and result.json come to lie in the bundle's folder built. An engine that is there and whole is not built again.
# Ends with 4 where both are missing, 5 where the board is at fault, 7 where the bundle was changed.

umask 077
LC_ALL=C
export LC_ALL
tab=$(printf '\t')
worker='' guard='' root='' clocks='' locked='' job='' told_python=''

# --- what is said -----------------------------------------------------------------------------------------------------

# Standard input as a JSON string.
quoted() {
    printf '"'
    tr -d '\000-\010\013-\037' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$tab/\\\\t/g" | awk 'BEGIN { ORS = "\\n" } { print }'
    printf '"'
}

line_of() { printf '%s' "$1" | quoted | sed 's/\\n"$/"/'; }

file_of() { if [ -s "$1" ]; then quoted <"$1"; else printf null; fi; }

# The exit code, what is wrong, and what to do. Never in a subshell: it ends the program.
fail() {
    if [ -n "$job" ]; then
        printf '{"failed": {"exit_code": %s, "message": %s, "hint": %s}}\n' "$1" "$(line_of "$2")" "$(line_of "$3")"
        exit 0
    fi
    printf 'edgekit: %s\n' "$2" >&2
    [ -z "$3" ] || printf 'hint: %s\n' "$3" >&2
    exit "$1"
}

note() { printf '%s\n' "$*" >&2; }

# --- the bundle -------------------------------------------------------------------------------------------------------

# Every file that the manifest lists is as it was packed, before any of them is used.
check_files() {
    [ -f manifest.json ] && [ -f manifest.sha256 ] || fail 7 "manifest.json: is missing" "copy the whole bundle again"
    sha256sum -c manifest.sha256 >/dev/null 2>&1 ||
        fail 7 "manifest.json: does not match manifest.sha256: one of the two was changed" "copy the whole bundle again"
    sums=$(awk '
        /^ "files": \{/ { inside = 1 }
        /^ \}/ { inside = 0 }
        inside && /^  "/ { name = $0; sub(/^  "/, "", name); sub(/": \{.*$/, "", name) }
        inside && /^   "sha256": "/ { sum = $2; gsub(/[",]/, "", sum); print sum "  " name }
    ' manifest.json)
    wrong=$(printf '%s\n' "$sums" | sha256sum -c - 2>/dev/null | sed -n 's/: FAILED.*$//p' | head -n 1)
    [ -z "$wrong" ] || if [ -e "$wrong" ]; then
        fail 7 "$wrong: was changed (its sha256 is not the one in manifest.json)" "copy the whole bundle again"
    else
        fail 7 "$wrong: is missing" "copy the whole bundle again"
    fi
    case $sums in *"  board.txt"*) ;; *) fail 7 "manifest.json: does not list board.txt" "copy the whole bundle again" ;; esac
    for module in tensorrt_runner.py tensorrt_inference.py; do # what is not listed is not run
        case $sums in *"  $module"*) ;; *) [ "$programs" != "$here" ] || programs=/dev/null ;; esac
    done
}

# Sets $release to the one of board.txt that this board runs, and what must be free; fails where there is none.
choose_release() {
    release='' offered='' chip='' name='' memory_kib=0 disk_kib=0 vectors=0
    while IFS= read -r line; do
        value=${line#* }
        case $line in
        "schema edgekit/tensorrt/1") ;;
        "schema "*) fail 7 "board.txt: schema is $value, this program reads edgekit/tensorrt/1" "deploy again" ;;
        "chip "*) chip=$value ;;
        "memory_kib "*) memory_kib=$value ;;
        "disk_kib "*) disk_kib=$value ;;
        "vector "*) vectors=$((vectors + 1)) ;;
        "release "*) name=$value ;;
        "tensorrt "*) wanted=$value ;;
        "l4t "*)
            case $offered in
            *"$name (TensorRT $wanted, L4T "*) offered="${offered%)}, $value)" ;;
            *) offered="$offered${offered:+ or }$name (TensorRT $wanted, L4T $value)" ;;
            esac
            case "$l4t." in "$value."*) case "$tensorrt." in "$wanted."*) release=$name ;; esac ;; esac
            ;;
        esac
    done <board.txt
    case " $chips " in
    *" $chip "*) ;;
    *) fail 5 "this board is $model ($chips); the bundle is for a board with $chip" "deploy for the target that it is" ;;
    esac
    [ -n "$release" ] || fail 5 "this board runs L4T $l4t with TensorRT $tensorrt; the bundle is for $offered" \
        "deploy for the release that the board runs, or install one of these on it"
}

# --- the board --------------------------------------------------------------------------------------------------------

read_board() {
    l4t=$(sed -n 's/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' /etc/nv_tegra_release 2>/dev/null)
    [ -n "$l4t" ] || l4t=$(dpkg-query -W -f '${Version}' nvidia-l4t-core 2>/dev/null | sed 's/-.*//')
    [ -n "$l4t" ] || fail 5 "this is no Jetson: there is no /etc/nv_tegra_release" "run it on the board that it is for"
    tensorrt=$(dpkg-query -W -f '${db:Status-Status} ${Version}\n' 'libnvinfer[0-9]*' 2>/dev/null |
        sed -n 's/^installed \([0-9]*\.[0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
    tree=/sys/firmware/devicetree/base
    chips=$(tr '\0' '\n' 2>/dev/null <$tree/compatible | sed -n 's/^nvidia,\(tegra[0-9]*\)$/\1/p' | tr '\n' ' ')
    chips=${chips% }
    model=$(tr -d '\0' 2>/dev/null <$tree/model)
    model=${model:-"an unknown board"}
    find_builder
    [ -n "$tensorrt" ] || fail 4 "TensorRT is not installed on this board" "install it there: sudo apt install tensorrt"
}

# Sets $builder, what it is called, and $trtexec or else $python, which stands in for it. TensorRT is then its module's.
find_builder() {
    builder=trtexec python='' why='' trtexec=/usr/src/tensorrt/bin/trtexec
    [ -x $trtexec ] || trtexec=$(command -v trtexec)
    [ -z "$trtexec" ] || return
    for candidate in "${told_python:-python3}" python3 /usr/bin/python3; do
        [ -f "$programs/tensorrt_runner.py" ] && command -v "$candidate" >/dev/null || continue
        if said=$("$candidate" "$programs/tensorrt_runner.py" --probe 2>/dev/null </dev/null 9>&-); then
            builder=tensorrt_runner.py python=$candidate
            tensorrt=$(printf '%s\n' "$said" | sed -n 's/^\([0-9]*\.[0-9]*\.[0-9]*\).*/\1/p')
            return
        fi
        why=${why:-$said}
    done
    hint='install it there: sudo apt install libnvinfer-bin; or TensorRT 10 for Python: sudo apt install python3-libnvinfer'
    fail 4 "there is no trtexec on this board" "$hint${why:+ ($why)}"
}

read_number() {
    read -r found 2>/dev/null <"$1" || found=''
    case $found in '' | *[!0-9]*) printf 0 ;; *) printf '%s' "$found" ;; esac
}

# Clock of the GPU now and at most in Hz, millidegrees of the hottest zone, and 1 where anything but a fan cools.
sample() {
    clock=0 most=0 hottest=0 throttled=0
    for gpu in /sys/class/devfreq/*gpu* /sys/class/devfreq/*.gp10b /sys/class/devfreq/*.gv11b /sys/class/devfreq/*.ga10b; do
        if [ -r "$gpu/cur_freq" ]; then
            clock=$(read_number "$gpu/cur_freq") most=$(read_number "$gpu/max_freq")
            break
        fi
    done
    for zone in /sys/class/thermal/thermal_zone*; do
        case $(cat "$zone/type" 2>/dev/null) in
        PMIC*) ;; # says 100 degrees, always
        *)
            degrees=$(read_number "$zone/temp")
            [ "$degrees" -le "$hottest" ] || hottest=$degrees
            ;;
        esac
    done
    for device in /sys/class/thermal/cooling_device*; do
        case $(cat "$device/type" 2>/dev/null) in
        *fan*) ;;
        *) [ "$(read_number "$device/cur_state")" = 0 ] || throttled=1 ;;
        esac
    done
    printf '[%s, %s, %s, %s]' "$clock" "$most" "$hottest" "$throttled"
}

# "$root program" may do what only root may; empty where we are root, fails where nobody lets us.
find_root() {
    if [ "$(id -u)" = 0 ]; then
        root=''
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        root='sudo -n'
    else
        return 1
    fi
}

power_mode() { { nvpmodel -q 2>/dev/null || $root nvpmodel -q 2>/dev/null; } | sed -n 's/^NV Power Mode: *//p'; }

state() {
    load=$(cut -d " " -f 1 /proc/loadavg)
    printf '{"load_1min": %s, "power_mode": %s, "governor": %s, "clocks": %s, "sample": %s}' "$load" "$(line_of "$(power_mode)")" \
        "$(line_of "$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)")" \
        "$($root jetson_clocks --show 2>/dev/null | quoted)" "$(sample)"
}

# Clocks at their highest until the end. Whatever ends this program, the guard puts them back: it is in a session of its
# own, so that nothing that kills us kills it.
lock_clocks() {
    put_clocks_back # of a run that was killed with its guard
    command -v jetson_clocks >/dev/null || {
        clocks='not locked: there is no jetson_clocks'
        return
    }
    find_root || {
        clocks='not locked: jetson_clocks needs root, or sudo without a password'
        return
    }
    $root jetson_clocks --store "$here/built/clocks" >/dev/null 2>&1 </dev/null || {
        rm -f built/clocks
        clocks='not locked: jetson_clocks could not store them'
        return
    }
    cat /proc/sys/kernel/random/boot_id >built/clocks-boot
    # shellcheck disable=SC2016,SC2086 # for the other shell; empty where there is no setsid
    $alone sh -c 'while kill -0 "$1"; do sleep 1; done
        [ ! -e "$2" ] || { $3 jetson_clocks --restore "$2" && rm -f "$2" "$2-boot"; }' \
        sh $$ "$here/built/clocks" "$root" </dev/null >/dev/null 2>&1 9>&- &
    guard=$!
    if $root jetson_clocks >/dev/null 2>&1 </dev/null; then clocks=locked; else clocks='not locked: jetson_clocks failed'; fi
}

put_clocks_back() {
    [ -e built/clocks ] || return
    find_root
    if [ "$(cat built/clocks-boot 2>/dev/null)" = "$(cat /proc/sys/kernel/random/boot_id)" ]; then # a restart did it
        $root jetson_clocks --restore "$here/built/clocks" >/dev/null 2>&1 </dev/null
    fi
    rm -f built/clocks built/clocks-boot
}

# --- one run at a time, which ends as a whole ---------------------------------------------------------------------------

busy() { fail 5 "another run is building or measuring this bundle" "wait until it has ended"; }

# The kernel lets go of the lock with its last holder. Without flock, a link names boot and process of the holder.
lock() {
    mkdir -p built && [ -w built ] && touch built/lock 2>/dev/null ||
        fail 5 "cannot write to $here/built" "copy the bundle to a disk that you may write to"
    exec 9>>built/lock
    flock -n 9 2>/dev/null
    case $? in
    0) ;;
    1) busy ;;
    *)
        boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null) tries=0
        until ln -s "$boot:$$" built/lock-link 2>/dev/null; do
            held=$(readlink built/lock-link) tries=$((tries + 1))
            if [ $tries -gt 3 ] || { [ "${held%:*}" = "$boot" ] && kill -0 "${held##*:}" 2>/dev/null; }; then
                busy
            fi
            rm -f built/lock-link
        done
        locked=built/lock-link
        ;;
    esac
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

finish() {
    trap '' HUP INT TERM
    if [ -n "$worker" ]; then
        kill -KILL "$worker" 2>/dev/null
        wait "$worker" 2>/dev/null
    fi
    put_clocks_back
    [ -z "$guard" ] || kill -KILL "$guard" 2>/dev/null
    rm -f built/*.part $locked
}

# --- trtexec, or what does its work -----------------------------------------------------------------------------------

# Runs it with what board.txt says for $1, and with the other arguments. Its words are in built/$1.log. Samples the
# board each second while it runs.
tell() {
    kind=$1 inside=''
    shift
    while IFS= read -r line; do
        case $line in
        "release $release") inside=yes ;;
        "release "*) inside='' ;;
        "$kind "*) [ -z "$inside" ] || set -- "$@" "${line#* }" ;;
        esac
    done <board.txt
    if [ -n "$python" ]; then set -- "$python" "$programs/tensorrt_runner.py" "$@"; else set -- "$trtexec" "$@"; fi
    "$@" >"built/$kind.log" 2>&1 </dev/null 9>&- &
    worker=$!
    watch >built/samples 2>/dev/null </dev/null 9>&- &
    wait "$worker"
    code=$?
    worker=''
    [ $code -eq 0 ] || builder_failed "$kind"
}

# While that runs. It must not outlive this program, whatever that was killed by.
watch() {
    while kill -0 "$worker"; do
        kill -0 $$ || kill -KILL "$worker"
        sample
        echo
        sleep 1
    done
}

free_kib() {
    # shellcheck disable=SC2046 # the fields of the last line
    set -- $(df -Pk built | tail -n 1)
    printf '%s' "$4"
}

builder_failed() {
    said=$(sed -n 's/^.*\[E\] *//p' "built/$1.log" | head -n 1 | cut -c 1-300)
    [ "$(free_kib)" -ge 64 ] || fail 5 "the disk of the board is full: $builder could not write to $here/built" \
        "free some space there, or copy the bundle to another disk"
    [ $code -ne 137 ] || fail 5 "$builder ($1) was killed by SIGKILL on the board" \
        "SIGKILL is what the kernel sends when memory runs out: end other programs there"
    fail 5 "$builder ($1) failed with status $code on the board: ${said:-it said nothing}" \
        "its words are in built/$1.log there"
}

megabytes() { printf '%s MB' $(($1 * 1024 / 1000000)); }

build() {
    key=$({ cat board.txt manifest.json; echo "$l4t $tensorrt $model $trtexec$python"; } | sha256sum | cut -d ' ' -f 1)
    engine=$(sha256sum built/model.engine 2>/dev/null | cut -d ' ' -f 1)
    built_now=false
    if [ -n "$engine" ] && [ "$(cat built/engine.key 2>/dev/null)" = "$key $engine" ]; then
        note "the engine is there"
        return
    fi
    free=$(awk '/^(MemAvailable|SwapFree):/ { kib += $2 } END { printf "%d", kib }' /proc/meminfo)
    [ "$free" -ge "$memory_kib" ] || fail 5 \
        "building needs about $(megabytes "$memory_kib") of memory by forecast, and $(megabytes "$free") are free on the board" \
        "end other programs there, its desktop first (sudo systemctl isolate multi-user.target), or add swap"
    free=$(free_kib)
    [ "$free" -ge "$disk_kib" ] || fail 5 \
        "the disk of the board is full: building needs $(megabytes "$disk_kib") in $here/built, and $(megabytes "$free") are free" \
        "free some space there, or copy the bundle to another disk"
    rm -f built/engine.key built/model.engine built/*.part
    [ ! -s built/timing.cache ] || cp built/timing.cache built/timing.part
    note "build the engine with TensorRT $tensorrt ($release)"
    tell build
    [ -s built/engine.part ] || fail 5 "$builder wrote no engine" "its words are in built/build.log on the board"
    sync
    mv built/engine.part built/model.engine
    [ ! -s built/timing.part ] || mv built/timing.part built/timing.cache
    engine=$(sha256sum built/model.engine | cut -d ' ' -f 1)
    printf '%s %s\n' "$key" "$engine" >built/engine.key
    built_now=true
}

# Every test vector through the engine; what comes out is compared where the expected outputs are.
check_vectors() {
    note "run $vectors test vectors"
    rm -f built/output-*.json
    index=0
    while [ $index -lt "$vectors" ]; do
        argument=$(sed -n 's/^vector //p' board.txt | sed -n "$((index + 1))p")
        tell check "$argument" "--exportOutput=built/output-$index.json"
        index=$((index + 1))
    done
}

bench() {
    before_mode=$(power_mode)
    rm -f built/times.json built/profile.json built/layers.json
    lock_clocks
    before=$(state)
    note "measure for $seconds s, then each layer"
    tell time "--duration=$seconds"
    mv built/samples built/samples-time
    tell profile
    after=$(state)
    put_clocks_back
    after_mode=$(power_mode)
    [ "$before_mode" = "$after_mode" ] || fail 5 \
        "the power mode of the board changed during the measurement: $before_mode before, $after_mode after" \
        "leave nvpmodel alone while it measures, and run again"
}

# --- what comes out ---------------------------------------------------------------------------------------------------

device() {
    printf '{"cpu": %s, "machine": "%s", "cores": %s, "emulated": %s, ' "$(line_of "$model")" "$(uname -m)" \
        "$(grep -c '^processor' /proc/cpuinfo)" "$(emulated)"
    printf '"runtime": "tensorrt %s%s", "tensorrt": "%s", "builder": "%s", ' "$tensorrt" "${python:+ (Python)}" "$tensorrt" \
        "$builder"
    printf '"l4t": "%s", "chips": "%s", "governor": %s, "power_mode": %s}' "$l4t" "$chips" \
        "$(line_of "$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)")" "$(line_of "$(power_mode)")"
}

# Whether the kernel below is of another kind of processor: Documentation/admin-guide/sysctl/kernel.rst, "arch".
emulated() {
    case "$(uname -m) $(cat /proc/sys/kernel/arch 2>/dev/null)" in
    aarch64\ x86_64 | aarch64\ i?86) printf true ;;
    *) printf false ;;
    esac
}

result() {
    printf '{"schema": "edgekit/tensorrt-run/1", "device": %s, "release": "%s", ' "$(device)" "$release"
    printf '"engine": {"sha256": "%s", "bytes": %s, "built_now": %s, "said": %s}, ' "$engine" \
        "$(($(wc -c <built/model.engine)))" $built_now "$(grep -h 'Engine built in' built/build.log 2>/dev/null | quoted)"
    printf '"outputs": ['
    index=0
    while [ $index -lt "$checked" ]; do
        [ $index -eq 0 ] || printf ', '
        file_of built/output-$index.json
        index=$((index + 1))
    done
    printf ']'
    [ -z "$measured" ] || {
        printf ', "before": %s, "after": %s, "clocks": "%s", "samples": [%s], ' "$before" "$after" "$clocks" \
            "$(tr '\n' ',' <built/samples-time | sed 's/,$//')"
        printf '"settings": %s, ' "$(grep -E 'Data transfers:|Spin-wait:|CUDA [Gg]raph' built/time.log | quoted)"
        printf '"times": %s, "profile": %s, "layers": %s' "$(file_of built/times.json)" "$(file_of built/profile.json)" \
            "$(file_of built/layers.json)"
    }
    printf '}\n'
}

whole() {
    cd "$here" || fail 5 "cannot enter $here" ""
    check_files
    read_board
    choose_release
    alone=$(command -v setsid >/dev/null && echo setsid)
    lock
    find_root
    checked=0 measured=''
    build
    if [ "$wanted_steps" != build ]; then
        check_vectors
        checked=$vectors
        if [ "$seconds" -gt 0 ]; then
            bench
            measured=yes
        fi
    fi
    result >built/result.part
    mv built/result.part built/result.json
    cat built/result.json
}

# $1 in whole seconds, rounded up.
whole_seconds() {
    case $1 in
    '' | *[!0-9.]* | *.*.*) return 1 ;;
    *.*[1-9]*) echo $((${1%%.*} + 1)) ;;
    *) echo "${1%%.*}" ;;
    esac
}

usage() {
    echo "usage: $0 [build|bench] [--seconds S]" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
programs=$here # ours, also where the files of a bundle lie elsewhere
seconds=3 wanted_steps=bench
if [ -f "$here/manifest.json" ]; then
    while [ $# -gt 0 ]; do
        case $1 in
        build | bench) wanted_steps=$1 ;;
        --seconds)
            seconds=$(whole_seconds "$2") || usage
            shift
            ;;
        --seconds=*) seconds=$(whole_seconds "${1#*=}") || usage ;;
        *) usage ;;
        esac
        shift
    done
    whole
else
    [ $# -eq 1 ] || usage
    IFS= read -r job <"$1"
    told_python=$(printf '%s' "$job" | sed -n 's/.*"python": "\([^"\\]*\)".*/\1/p')
    case $job in
    *'"action": "probe"'*)
        read_board
        printf '{"device": %s}\n' "$(device)"
        ;;
    *'"action": "bundle"'*)
        # Only the folder's own name is read from the job: its files lie beside ours.
        name=$(printf '%s' "$job" | sed -n 's/.*"folder": ".*\/\([0-9a-f]\{64\}\)".*/\1/p')
        number=$(printf '%s' "$job" | sed -n 's/.*"seconds": \([0-9.]*\).*/\1/p')
        seconds=$(whole_seconds "$number") && [ -d "$here/../$name" ] && [ -n "$name" ] ||
            fail 2 "the job names no folder that is here, or no seconds" ""
        here=$(cd "$here/../$name" && pwd)
        whole
        ;;
    *) fail 2 "this board builds and measures bundles; the host asked for something else" "" ;;
    esac
fi
