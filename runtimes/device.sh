#!/bin/sh
# What edgepack does on a device over SSH or adb: keeps files, runs programs detached, and tells how they ended.
#
#     sh device.sh ROOT COMMAND [ARGUMENT...]
#
# POSIX sh and the small programs of Debian, BusyBox or Android. Every command may be repeated after a lost answer: it
# goes on where it was. Answers are lines on stdout; exit codes are those of sysexits.h, and 28 for a full disk.
#
#     ROOT/store/DIGEST/NAME   files by their SHA-256; NAME.part while one arrives
#     ROOT/jobs/KEY/           pid, boot, stdout, stderr, and `done` (CODE SECONDS) when it has ended
#     ROOT/lock/owner          who measures here now
#     ROOT/governors           what to put back, while a job runs with another governor

set -u
umask 077
root=$1
command=$2
shift 2
self=$0
boot=$(cat /proc/sys/kernel/random/boot_id 2> /dev/null || echo unknown)

uptime_s() { # whole seconds on a clock that nobody sets
    if read -r up _ < /proc/uptime; then echo "${up%%.*}"; else date +%s; fi 2> /dev/null
}

size_of() { # bytes of a file, 0 where there is none
    if [ -f "$1" ]; then wc -c < "$1" | tr -d ' '; else echo 0; fi
}

free_kb() {
    df -Pk "$root" 2> /dev/null | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4
}

alive() { # whether the job in folder $1 is still at work; process numbers come again, so its folder must be in its command
    [ -s "$1/pid" ] && [ "$(cat "$1/boot" 2> /dev/null)" = "$boot" ] || return 1
    tr '\0' '\n' 2> /dev/null < "/proc/$(cat "$1/pid")/cmdline" | grep -qxF "$1"
}

# ---------------------------------------------------------------- facts

facts() { # one "key value" a line; what the device does not tell is left out
    echo "root $root"
    echo "boot $boot"
    echo "machine $(uname -m)"
    echo "kernel $(uname -r)"
    echo "user $(id -un 2> /dev/null || id -u)"
    libc=$(getconf GNU_LIBC_VERSION 2> /dev/null) && echo "libc $libc"
    for python in "$root/venv/bin/python" python3; do
        version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null) || continue
        echo "python $(command -v "$python")"
        echo "python_version $version"
        break
    done
    echo "free_kb $(free_kb)"
    while read -r name value _; do
        case $name in MemTotal:) echo "ram_kb $value" ;; MemAvailable:) echo "available_kb $value" ;; esac
    done < /proc/meminfo
    for tool in setsid timeout sha256sum dd taskset; do
        command -v $tool > /dev/null 2>&1 || echo "lacks $tool"
    done
    for file in $(governor_files); do
        echo "governor $(cat "$file")"
        [ -w "$file" ] && echo "governor_writable yes"
    done | sort -u
    cat /sys/class/thermal/thermal_zone*/temp 2> /dev/null | sort -n | tail -n 1 | sed 's/^/millidegrees /'
    throttled=$(vcgencmd get_throttled 2> /dev/null) && echo "$throttled" | tr = ' '
    [ -r /proc/sys/kernel/perf_event_paranoid ] && echo "perf_event_paranoid $(cat /proc/sys/kernel/perf_event_paranoid)"
    sudo -n true 2> /dev/null && echo "sudo yes"
    return 0
}

# ---------------------------------------------------------------- files

have() { # DIGEST NAME ...: what of each is here, and the free space
    while [ $# -gt 1 ]; do
        file=$root/store/$1/$2
        if [ -f "$file" ]; then
            touch -c "$root/store/$1" # in use: spared when old files are removed
            echo "$1 whole $(size_of "$file")"
        else
            mkdir -p "$root/store/$1" || exit 73
            echo "$1 part $(size_of "$file.part")"
        fi
        shift 2
    done
    echo "free_kb $(free_kb)"
}

keep() { # DIGEST NAME: a file that has arrived becomes whole if it is what it should be
    file=$root/store/$1/$2
    if [ -f "$file" ] && [ ! -f "$file.part" ]; then
        echo whole
        return
    fi
    found=$(sha256sum "$file.part" 2> /dev/null | cut -d ' ' -f 1)
    if [ "$found" = "$1" ]; then
        mv "$file.part" "$file" && echo whole
    else
        rm -f "$file.part"
        echo "damaged ${found:-missing}"
    fi
}

drop() { # DIGEST NAME: the part of a file is given up
    rm -f "$root/store/$1/$2.part"
    rmdir "$root/store/$1" 2> /dev/null
}

# ---------------------------------------------------------------- governors

governor_files() { # each clock domain once
    for file in /sys/devices/system/cpu/cpufreq/policy*/scaling_governor; do
        [ -f "$file" ] && echo "$file"
    done
}

write_governor() { # FILE VALUE, with sudo where that needs no password
    { echo "$2" > "$1"; } 2> /dev/null || echo "$2" | sudo -n tee "$1" > /dev/null 2>&1
}

set_governors() { # performance everywhere; what was there is written down before it is changed
    restore_governors
    for file in $(governor_files); do
        now=$(cat "$file")
        [ "$now" = performance ] && continue
        echo "$now $file" >> "$root/governors"
        write_governor "$file" performance
    done
    return 0
}

restore_governors() { # also what a job left behind that was killed
    [ -f "$root/governors" ] || return 0
    while read -r value file; do
        write_governor "$file" "$value"
    done < "$root/governors"
    rm -f "$root/governors"
}

# ---------------------------------------------------------------- jobs

attend() { # KEY WAIT_S EXPECT_S TIMEOUT_S PROGRAM...: starts a job once, waits for it, tells what became of it
    job=$root/jobs/$1
    wait_s=$2 expect_s=$3
    started=$(uptime_s)
    refresh
    mkdir -p "$root/jobs" || exit 73
    if [ ! -d "$job" ] && others; then # of a session that was cut; two at once would disturb each other
        while others && [ $(($(uptime_s) - started)) -lt "$wait_s" ]; do sleep 1; done
        echo running # and whoever still wants the job asks again
        return
    fi
    if mkdir "$job" 2> /dev/null; then
        echo "$boot" > "$job/boot"
        cat "$root/lock/owner" > "$job/owner" 2> /dev/null
        shift 3
        setsid sh "$self" "$root" work "$job" "$@" < /dev/null > /dev/null 2>&1 &
    fi
    # A sleeping shell disturbs nothing; a polling one a little. So it sleeps as long as the job must take.
    pause=0.05
    [ "$expect_s" -gt 0 ] && pause=0.5
    [ -f "$job/done" ] || sleep "$expect_s"
    while [ ! -f "$job/done" ]; do
        now=$(uptime_s)
        if ! alive "$job" && [ $((now - started)) -ge 3 ] && [ ! -f "$job/done" ]; then
            echo died
            return
        fi
        if [ $((now - started)) -ge "$wait_s" ]; then
            echo running
            return
        fi
        sleep $pause 2> /dev/null || sleep 1
    done
    by=other
    [ "$(cat "$job/owner" 2> /dev/null)" = "$(cat "$root/lock/owner" 2> /dev/null)" ] && by=mine
    echo "done $(head -n 1 "$job/done") $(size_of "$job/stdout") $by"
    cat "$job/stdout"
    tail -c 4000 "$job/stderr"
    [ "$(free_kb)" -lt 64 ] 2> /dev/null && printf '\nthe disk of %s is full\n' "$root"
    return 0
}

others() { # whether a job runs
    for other in "$root"/jobs/*/; do
        [ -f "$other/done" ] || ! alive "${other%/}" || return 0
    done
    return 1
}

work() { # JOB TIMEOUT_S PROGRAM...: the detached process of a job
    job=$1 limit=$2
    shift 2
    cd "$job" || exit 73
    echo $$ > pid.part && mv pid.part pid
    printf '%40s\n' '' > done.part # written over at the end, which takes no more space on a disk that is full by then
    set_governors
    started=$(uptime_s)
    EDGEPACK_JOB=$job/ timeout -s KILL "$limit" "$@" < /dev/null > stdout 2> stderr
    code=$?
    end_strays "$job"
    restore_governors
    echo "$code $(($(uptime_s) - started))" 1<> done.part && mv done.part done
}

end_strays() { # kills what the job in folder $1 started, in whatever process group; it may start more meanwhile
    for _ in 1 2 3; do
        strays=$(grep -lF "EDGEPACK_JOB=$1/" /proc/[0-9]*/environ 2> /dev/null | cut -d / -f 3)
        [ -n "$strays" ] || return 0
        for stray in $strays; do kill -KILL "$stray" 2> /dev/null; done
    done
}

cancel() { # KEY: ends a job and all its processes
    job=$root/jobs/$1
    if alive "$job"; then
        kill -KILL "$(cat "$job/pid")" 2> /dev/null
    fi
    end_strays "$job"
    restore_governors
    rm -rf "$job"
}

forget() { # KEY...: removes ended jobs
    for key in "$@"; do
        rm -rf "$root/jobs/$key"
    done
}

# ---------------------------------------------------------------- order

refresh() { # the owner of the lock is still there
    touch -c "$root/lock/owner" 2> /dev/null
    return 0
}

lock() { # OWNER [FROM]: "mine", or "owner NAME" of another; FROM is an owner that is known to be gone
    mkdir -p "$root" || exit 73
    tidy
    if mkdir "$root/lock" 2> /dev/null; then
        own "$1"
    fi
    owner=$(cat "$root/lock/owner" 2> /dev/null)
    if [ "$owner" != "$1" ] && { [ -n "${2-}" ] && [ "$owner" = "$2" ] || idle; }; then
        own "$1"
        owner=$1
    fi
    if [ "$owner" != "$1" ]; then
        echo "owner $owner"
        return
    fi
    others || sweep_up
    echo mine
}

own() { # OWNER: a lock that a full disk leaves without an owner would hold the device for two minutes
    echo "$1" > "$root/lock/owner" || {
        rm -rf "$root/lock"
        exit 74
    }
}

sweep_up() { # no job runs: what is left of those whose shell was killed
    for other in "$root"/jobs/*/; do
        if [ -d "$other" ] && [ ! -f "$other/done" ]; then
            end_strays "${other%/}"
        fi
    done
    restore_governors
}

idle() { # nobody has asked for anything in two minutes, and nothing runs; asked twice, as a refresh may come in between
    ! fresh && ! fresh && ! others
}

fresh() { # a lock out of the future is none: the clock has been put back, as at a start without a battery
    if touch "$root/now" 2> /dev/null; then
        [ -n "$(find "$root/lock" -mmin -2 ! -newer "$root/now" 2> /dev/null)" ]
    else
        [ -n "$(find "$root/lock" -mmin -2 2> /dev/null)" ]
    fi
}

unlock() { # OWNER
    [ "$(cat "$root/lock/owner" 2> /dev/null)" = "$1" ] && rm -rf "$root/lock"
    return 0
}

tidy() { # what nobody has used for a week, and jobs that nobody came back for within a day
    find "$root/store" -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf {} + 2> /dev/null
    find "$root" -maxdepth 1 -name 'device-*.sh' ! -path "$self" -mtime +7 -exec rm -f {} + 2> /dev/null
    find "$root/jobs" -mindepth 1 -maxdepth 1 -type d -mmin +1440 2> /dev/null | while read -r old; do
        alive "$old" || rm -rf "$old"
    done
}

case $command in
    facts | have | keep | drop | attend | work | cancel | forget | lock | unlock) "$command" "$@" ;;
    *)
        echo "device.sh: no command $command" >&2
        exit 64
        ;;
esac
