#!/usr/bin/env bash
# A throwaway Slurm cluster on this machine, for the tests: four virtual nodes of one CPU on loopback, with accounting,
# without systemd. Run as root; it touches no other Slurm, munge or MariaDB.
#   slurm_cluster.sh start FOLDER    everything lies in FOLDER; afterwards SLURM_CONF=FOLDER/slurm.conf is all one needs
#   slurm_cluster.sh stop FOLDER
#   slurm_cluster.sh lose FOLDER NODE    kills the node with all that runs on it, as if its power were cut
# Debian: slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core
set -euo pipefail
NODES=4
ORDER=(munged mariadbd slurmdbd slurmctld node)

lives() {  # a zombie, which the machine's first process may reap late, counts as gone
    [ -r "/proc/$1/status" ] && ! grep -q '^State:[[:space:]]*[ZX]' "/proc/$1/status"
}

daemon() {  # NAME COMMAND...: in a session of its own
    local name=$1
    shift
    setsid "$@" </dev/null >"$folder/log/$name.out" 2>&1 &
    echo $! >"$folder/pids/$name"
}

wait_until() {  # WHAT COMMAND...
    local what=$1 end=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "slurm_cluster: $what did not come up" >&2
            tail -n 20 "$folder"/log/* >&2
            return 1
        fi
        sleep 0.1
    done
}

idle_nodes() {
    [ "$(sinfo --noheader --Node --states=idle --format=%N | sort -u | wc -l)" -eq $NODES ]
}

free_ports() {  # FIRST: nothing listens on it or on those that go with it
    local offset
    for offset in 0 1 $(seq 11 $((10 + NODES))); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$(($1 + offset))") 2>/dev/null; then return 1; fi
    done
}

configure() {
    local host number range first_port  # slurmctld; +1 slurmdbd; +11, +12, ... the nodes
    host=$(hostname -s)
    range=${PYTEST_XDIST_WORKER:-gw0}  # clusters that start at once look in ranges of their own
    range=$((20000 + 1000 * ${range#gw}))
    first_port=$((range + RANDOM % 980))
    until free_ports $first_port; do first_port=$((range + RANDOM % 980)); done
    cat >"$folder/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock
DbdHost=localhost
DbdPort=$((first_port + 1))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
PidFile=$folder/slurmdbd.pid
LogFile=$folder/log/slurmdbd.log
CONF
    chmod 600 "$folder/slurmdbd.conf"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$first_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is put back into the queue waits as long as credentials live (two minutes by default).
AuthInfo=socket=$folder/munge.sock,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# The scheduler's main loop sleeps a minute by default.
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
KillWait=5
SlurmdTimeout=10
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$((first_port + 1))
AccountingStoragePass=$folder/munge.sock
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for number in $(seq $NODES); do
        mkdir -p "$folder/spool/n$number"
        echo "NodeName=n$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$((first_port + 10 + number)) CPUs=1" \
            "RealMemory=2000 State=UNKNOWN" >>"$folder/slurm.conf"
    done
    echo "CgroupPlugin=disabled" >"$folder/cgroup.conf"
}

start() {
    mkdir -p "$folder"/{state,spool,log,pids,db,tmp}
    export TMPDIR=$folder/tmp  # MariaDB, when it starts, removes what others have of temporary tables in the same one
    chmod 755 "$folder"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    configure
    daemon munged munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" \
        --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
    wait_until munged munge --socket="$folder/munge.sock" --no-input
    mariadb-install-db --no-defaults --user=root --datadir="$folder/db" --auth-root-authentication-method=socket \
        --skip-test-db >"$folder/log/mariadb-install.out" 2>&1
    daemon mariadbd mariadbd --no-defaults --user=root --datadir="$folder/db" --socket="$folder/db.sock" \
        --skip-networking --pid-file="$folder/mariadbd.pid" --innodb-buffer-pool-size=64M
    wait_until mariadbd mariadb --no-defaults --socket="$folder/db.sock" -e 'select 1'
    # slurmdbd fails when it has to make its database itself (libmariadb 3.4).
    mariadb --no-defaults --socket="$folder/db.sock" -e 'create database slurm_acct_db'
    daemon slurmdbd env MYSQL_UNIX_PORT="$folder/db.sock" slurmdbd -D
    wait_until slurmdbd sacctmgr --noheader list cluster
    sacctmgr --immediate add cluster tests >/dev/null
    daemon slurmctld slurmctld -D
    wait_until slurmctld scontrol ping
    local number
    for number in $(seq $NODES); do daemon "node$number" slurmd -D -N "n$number"; done
    wait_until "$NODES nodes" idle_nodes
}

stop() {
    local position file pid
    [ -d "$folder/pids" ] || return 0
    scancel --user=root >/dev/null 2>&1 || true
    for ((position = ${#ORDER[@]} - 1; position >= 0; position--)); do
        for file in "$folder/pids/${ORDER[position]}"*; do
            [ -e "$file" ] || continue
            pid=$(cat "$file")
            if lives "$pid"; then kill "$pid"; fi
            for _ in $(seq 100); do
                lives "$pid" || break
                sleep 0.1
            done
            if lives "$pid"; then kill -9 "$pid"; fi
            rm "$file"
        done
    done
}

lose() {  # NODE. Setting it down by scontrol is another thing: its slurmd lives, and takes its own job again too early
    local node=$1 file pids=() parents=()
    for file in /proc/[0-9]*/environ; do
        if grep -qzx "SLURMD_NODENAME=$node" "$file" 2>/dev/null && grep -qzx "SLURM_CONF=$SLURM_CONF" "$file"; then
            pids+=("$(basename "$(dirname "$file")")")
        fi
    done
    for pid in "${pids[@]}"; do
        parent=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status" 2>/dev/null || true)
        if [[ $(cat "/proc/${parent:-none}/comm" 2>/dev/null) == slurmstepd ]]; then parents+=("$parent"); fi
    done
    kill -9 "$(cat "$folder/pids/node${node#n}")" "${parents[@]}" "${pids[@]}" 2>/dev/null || true  # some end meanwhile
}

usage() {
    sed -n '2,8p' "$0" >&2
    exit 2
}

if [ $# -lt 2 ]; then usage; fi
folder=$2
export SLURM_CONF=$folder/slurm.conf
case $1 in
    start) start ;;
    stop) stop ;;
    lose) lose "${3:?a node}" ;;
    *) usage ;;
esac
