#!/usr/bin/env bash
# A real SLURM cluster on loopback for the tests, thrown away afterwards; no systemd, nothing outside its folder.
#
#   cluster.sh install               Debian's packages (as root; starts no service)
#   cluster.sh start  DIR            bring it up: accounting, partitions cpu (default), gpu, scavenge, spare, urgent
#   cluster.sh stop   DIR            cancel all jobs and end every process of it
#   cluster.sh wipe   DIR            stop it and remove DIR
#   cluster.sh exec   DIR CMD...     run CMD as on its login node
#   cluster.sh kill-node  DIR NODE   kill a node: its slurmd and every process of its jobs
#   cluster.sh start-node DIR NODE   bring it back
#
# Nodes gpu1 to gpu7 claim 8 H100s each, cpu1 none. By their features a test takes nodes that it can break without
# harm to others: steady (gpu1, gpu2), trio (gpu3 to gpu5), n6, n7. CLUSTER_PORT: first port, 17800.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH LC_ALL=C
NODES=7 GPUS=8 CPUS=64 MEM_MB=500000 PORT=${CLUSTER_PORT:-17800}
NAMES=(gpu1 gpu2 gpu3 gpu4 gpu5 gpu6 gpu7 cpu1)
PACKAGES=(slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core)
HOST=$(uname -n); HOST=${HOST%%.*}
MARK='# loopback SLURM of tests'
LAUNCHED=()
# What the caller has set for another cluster must not leak in.
for v in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SACCT|SQUEUE|SINFO|SALLOC|MUNGE)_' || true); do unset "$v"; done

say() { printf 'cluster: %s\n' "$*" >&2; }
die() {
    printf 'cluster: error: %s\n' "$*" >&2
    local launched=("${LAUNCHED[@]}"); LAUNCHED=()
    [ ${#launched[@]} -eq 0 ] || end "${launched[@]}"
    exit 1
}

missing() { local p; for p in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"; done; }

install_packages() {
    local need policy=/usr/sbin/policy-rc.d log
    command -v apt-get >/dev/null || die "no apt-get: the cluster of the tests is made of Debian's packages"
    mapfile -t need < <(missing)
    [ ${#need[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "only root can install ${need[*]}"
    if [ ! -e $policy ]; then # the packages' own scripts must not start services
        printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${need[@]}"; } >"$log" 2>&1 </dev/null ||
        { tail -30 "$log" >&2; rm -f "$log"; die "apt-get cannot install ${need[*]}"; }
    rm -f "$log"
    say "installed: $(slurmctld -V)"
}

# ---------------------------------------------------------------- processes, by files "PID STARTTIME"
start_time() { # of a process that is no zombie
    local stat
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
    stat=${stat##*) }
    case $stat in Z* | X*) return 0 ;; esac
    # shellcheck disable=SC2086
    set -- $stat
    echo "${20}"
}
alive() {
    local pid start
    [ -s "$DIR/run/$1.pid" ] && read -r pid start <"$DIR/run/$1.pid" && [ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ]
}
pid_of() { cut -d' ' -f1 <"$DIR/run/$1.pid"; }
launch() { # NAME CMD...
    local name=$1 pid; shift
    setsid "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 9>&- &
    pid=$!; echo "$pid $(start_time "$pid")" >"$DIR/run/$name.pid"; LAUNCHED+=("$name")
}
end() { # NAME...: TERM to all at once, KILL to those that are left after 15 s
    local name i left=("$@")
    for name in "$@"; do if alive "$name"; then kill -TERM "$(pid_of "$name")" 2>/dev/null || true; fi; done
    for ((i = 0; i < 300 && ${#left[@]}; i++)); do
        left=(); for name in "$@"; do if alive "$name"; then left+=("$name"); fi; done
        [ ${#left[@]} -eq 0 ] || sleep 0.05
    done
    for name in "${left[@]}"; do kill -KILL "$(pid_of "$name")" 2>/dev/null || true; done
    for name in "$@"; do rm -f "$DIR/run/$name.pid"; done
}
# A slurmstepd is known by the log it holds open, what it started by SLURM_CONF and SLURMD_NODENAME.
job_pids() { # [NODE]
    local d pid environment node=${1:-}
    for d in /proc/[0-9]*; do
        pid=${d#/proc/}
        [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
        case $(readlink "$d/exe" 2>/dev/null) in
            */slurmstepd*)
                readlink "$d"/fd/* 2>/dev/null | grep -qE "^$DIR/log/slurmd-${node:-[a-z0-9]+}\.log" && echo "$pid"
                continue ;;
        esac
        environment=$({ tr '\0' '\n' <"$d/environ"; } 2>/dev/null) || continue
        grep -qxF "SLURM_CONF=$SLURM_CONF" <<<"$environment" && grep -qE "^SLURMD_NODENAME=${node:-.}" <<<"$environment" && echo "$pid"
    done
    return 0
}
with_children() {
    local all=" $* " p c
    set -- "$@"
    while [ $# -gt 0 ]; do
        p=$1; shift
        for c in $(cat /proc/"$p"/task/*/children 2>/dev/null); do
            case $all in *" $c "*) ;; *) all="$all$c "; set -- "$@" "$c" ;; esac
        done
    done
    echo "$all"
}
wait_for() { # SECONDS NAME CMD...: until CMD succeeds; an error when daemon NAME ends
    local seconds=$1 name=$2 i; shift 2
    for ((i = 0; i < seconds * 10; i++)); do
        "$@" >/dev/null 2>&1 && return 0
        alive "$name" || { tail -n 15 "$DIR/log/$name".* >&2; die "$name ended while it started"; }
        sleep 0.1
    done
    tail -n 15 "$DIR/log/$name".* >&2
    die "$name was not ready within $seconds s"
}
listening() { timeout 1 bash -c ": </dev/tcp/127.0.0.1/$1" 2>/dev/null; }

# ---------------------------------------------------------------- configuration
load() {
    DIR=$(realpath -m -- "${1:?which directory?}")
    case $DIR in / | /tmp | /root | /home | /etc | /usr | /var) die "$DIR is not a directory of its own" ;; esac
    case $DIR in *[!A-Za-z0-9/_.+-]*) die "only letters, digits and / _ . + - in the directory's path: $DIR" ;; esac
    [ ${#DIR} -le 60 ] || die "the directory's path is too long for unix sockets (60 characters): $DIR"
    [ ! -f "$DIR/port" ] || PORT=$(cat "$DIR/port")
    export SLURM_CONF=$DIR/etc/slurm.conf
}

configure() {
    local i command here="NodeHostname=$HOST NodeAddr=127.0.0.1"
    mkdir -p "$DIR"; chmod 755 "$DIR"; echo "$PORT" >"$DIR/port"
    (cd "$DIR" && mkdir -p etc run log ctld spool gpus munge mysql bin && chmod 755 etc run log spool munge && chmod 700 mysql)
    [ -s "$DIR/munge/munge.key" ] || (umask 077; dd if=/dev/urandom of="$DIR/munge/munge.key" bs=128 count=1 status=none)
    [ -s "$DIR/mysql.pw" ] || (umask 077; od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$DIR/mysql.pw")
    for ((i = 0; i < GPUS; i++)); do ln -sfn /dev/null "$DIR/gpus/gpu$i"; done # slurmd wants character devices
    # Commands that know their cluster: Snakemake's job step drops SLURM_CONF.
    for command in sacct sacctmgr sbatch scancel scontrol sinfo squeue srun; do
        printf '#!/bin/sh\nSLURM_CONF=%s exec /usr/bin/%s "$@"\n' "$SLURM_CONF" $command >"$DIR/bin/$command"
        chmod 755 "$DIR/bin/$command"
    done
    printf 'CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n' >"$DIR/etc/cgroup.conf"
    : >"$DIR/etc/plugstack.conf"
    printf 'AutoDetect=off\nNodeName=gpu[1-%d] Name=gpu Type=h100 File=%s/gpus/gpu[0-%d]\n' $NODES "$DIR" $((GPUS - 1)) >"$DIR/etc/gres.conf"
    cat >"$DIR/etc/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits until its credential has expired: 20 s instead of SLURM's 120.
AuthInfo=socket=$DIR/munge/munge.socket,cred_expire=20
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$DIR/ctld
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.own.pid
SlurmdPidFile=$DIR/run/slurmd-%n.own.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
PlugStackConfig=$DIR/etc/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
MpiDefault=none
SwitchType=switch/none
LaunchParameters=disable_send_gids
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1,sched_min_interval=10000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=300
KillWait=8
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=10
EpilogMsgTime=0
CompleteWait=0
DefMemPerCPU=100
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$DIR/munge/munge.socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu,gres/gpu:h100
AccountingStoreFlags=job_comment
NodeName=DEFAULT CPUs=$CPUS RealMemory=$MEM_MB State=UNKNOWN
NodeName=gpu[1-2] $here Port=[$((PORT + 10))-$((PORT + 11))] Gres=gpu:h100:$GPUS Feature=steady
NodeName=gpu[3-5] $here Port=[$((PORT + 12))-$((PORT + 14))] Gres=gpu:h100:$GPUS Feature=trio
NodeName=gpu6 $here Port=$((PORT + 15)) Gres=gpu:h100:$GPUS Feature=n6
NodeName=gpu7 $here Port=$((PORT + 16)) Gres=gpu:h100:$GPUS Feature=n7
NodeName=cpu1 $here Port=$((PORT + 17))
PartitionName=DEFAULT DefaultTime=10 MaxTime=1440 State=UP
PartitionName=cpu Nodes=cpu1 Default=YES
PartitionName=gpu Nodes=gpu[1-$NODES] PriorityTier=5 PreemptMode=OFF
PartitionName=scavenge Nodes=gpu[6-7] PriorityTier=1 PreemptMode=REQUEUE
PartitionName=spare Nodes=gpu[6-7] PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes=gpu[1-$NODES] PriorityTier=9 PreemptMode=OFF
CONF
    (umask 077
    cat >"$DIR/etc/slurmdbd.conf" <<CONF
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.socket
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 2))
StorageUser=slurm
StoragePass=$(cat "$DIR/mysql.pw")
StorageLoc=slurm_acct_db
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.own.pid
CONF
    cat >"$DIR/etc/mysql-init.sql" <<SQL
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '$(cat "$DIR/mysql.pw")';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
SQL
    )
}

# ---------------------------------------------------------------- start and stop
controller_up() { timeout 5 scontrol ping | grep -q 'is UP'; }
accounting_up() { timeout 5 sacctmgr -n list cluster; }
node_up() { timeout 5 sinfo -h -N -n "$1" -o %t | grep -qE '^(idle|mix|alloc|comp)$'; }
start_node() {
    alive "slurmd-$1" && return 0
    mkdir -p "$DIR/spool/$1"
    launch "slurmd-$1" slurmd -D -f "$SLURM_CONF" -N "$1"
}

start() {
    local name i
    [ "$(id -u)" = 0 ] || die "only root can start it: slurmd and munged check who runs them"
    [ -z "$(missing)" ] || die "packages are missing: $(missing | tr '\n' ' '); run: $0 install"
    mkdir -p "$DIR"; exec 9>"$DIR/.lock"; flock -w 60 9 || die "another start or stop holds $DIR/.lock"
    if ! getent ahostsv4 "$HOST" 2>/dev/null | grep -q '^127\.'; then # srun looks its own host's name up
        echo "127.0.0.1 $HOST $MARK" | cat - /etc/hosts >"$DIR/hosts" && cat "$DIR/hosts" >/etc/hosts
    fi
    alive slurmctld || for ((i = 0; i < 20; i++)); do
        ! listening $((PORT + i)) || die "port $((PORT + i)) is taken; set CLUSTER_PORT to another number"; done
    configure
    if ! alive munged; then
        rm -f "$DIR"/munge/munge.socket*
        launch munged munged --foreground --num-threads=4 --key-file="$DIR/munge/munge.key" \
            --socket="$DIR/munge/munge.socket" --pid-file="$DIR/munge/munged.pid" \
            --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"
        wait_for 10 munged munge -n -S "$DIR/munge/munge.socket"
    fi
    if ! alive mariadbd; then
        [ -d "$DIR/mysql/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$DIR/mysql" --skip-test-db \
            --skip-name-resolve --force --auth-root-authentication-method=socket >"$DIR/log/mariadb-install.out" 2>&1 9>&- </dev/null ||
            die "mariadb-install-db failed: $(tail -3 "$DIR/log/mariadb-install.out")"
        launch mariadbd mariadbd --no-defaults --user=root --datadir="$DIR/mysql" --bind-address=127.0.0.1 \
            --port=$((PORT + 2)) --socket="$DIR/run/mysql.sock" --pid-file="$DIR/run/mariadbd.own.pid" \
            --skip-name-resolve --skip-log-bin --innodb-buffer-pool-size=128M --innodb-log-file-size=64M \
            --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=2 --performance-schema=OFF \
            --init-file="$DIR/etc/mysql-init.sql"
        wait_for 40 mariadbd listening $((PORT + 2))
    fi
    if ! alive slurmdbd; then
        launch slurmdbd slurmdbd -D
        wait_for 40 slurmdbd accounting_up
    fi
    if [ -z "$(sacctmgr -n -P list cluster loopback format=cluster)" ]; then
        sacctmgr -i -Q add cluster loopback >/dev/null
        sacctmgr -i -Q add account lab Cluster=loopback Description=lab Organization=lab >/dev/null
        sacctmgr -i -Q add user root Account=lab DefaultAccount=lab Cluster=loopback >/dev/null
    fi
    if ! alive slurmctld; then
        launch slurmctld slurmctld -D -i -f "$SLURM_CONF"
        wait_for 30 slurmctld controller_up
    fi
    for name in "${NAMES[@]}"; do start_node "$name"; done
    for name in "${NAMES[@]}"; do wait_for 40 "slurmd-$name" node_up "$name"; done
}

stop() {
    local i state pids
    [ -f "$DIR/port" ] || return 0
    exec 9>"$DIR/.lock"; flock -w 60 9 || die "another start or stop holds $DIR/.lock"
    if alive slurmctld; then
        for state in PENDING RUNNING SUSPENDED; do timeout 10 scancel --full -Q --state=$state 2>/dev/null || true; done
        for ((i = 0; i < 50; i++)); do
            [ -n "$(squeue -h -t running,completing,suspended,configuring -o %i 2>/dev/null)" ] || break
            sleep 0.1
        done
    fi
    end slurmctld "${NAMES[@]/#/slurmd-}"
    end slurmdbd
    end mariadbd
    end munged
    # shellcheck disable=SC2046
    pids=$(with_children $(job_pids))
    # shellcheck disable=SC2086
    [ -z "${pids// /}" ] || kill -KILL $pids 2>/dev/null || true
    if grep -q "$MARK" /etc/hosts; then grep -v "$MARK" /etc/hosts >"$DIR/hosts" || true; cat "$DIR/hosts" >/etc/hosts; fi
}

kill_node() {
    local pids
    alive "slurmd-$1" || die "node $1 is not running"
    # shellcheck disable=SC2046
    pids=$(with_children "$(pid_of "slurmd-$1")" $(job_pids "$1"))
    # shellcheck disable=SC2086
    kill -KILL $pids 2>/dev/null || true
    rm -f "$DIR/run/slurmd-$1.pid"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
    install) install_packages ;;
    start) load "${1:-}"; start ;;
    stop) load "${1:-}"; stop ;;
    wipe) load "${1:-}"; stop; rm -rf -- "$DIR" ;;
    kill-node) load "${1:-}"; kill_node "$2" ;;
    start-node) load "${1:-}"; start_node "$2"; wait_for 60 "slurmd-$2" node_up "$2" ;;
    exec) load "${1:-}"; shift; PATH=$DIR/bin:$PATH exec "$@" ;;
    *) sed -n '2,/^set -euo/p' "$0" | sed -e '/^set -euo/d' -e 's/^# \{0,1\}//'; [ "$command" = help ] || exit 2 ;;
esac
