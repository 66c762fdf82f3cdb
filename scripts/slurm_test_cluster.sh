#!/usr/bin/env bash
# A throw-away Slurm cluster of two nodes on this machine, for tests: no systemd, nothing outside one folder, loopback only.
#
#   scripts/slurm_test_cluster.sh start FOLDER    # short, since it holds a socket; then export SLURM_CONF=FOLDER/slurm.conf
#   scripts/slurm_test_cluster.sh stop FOLDER
#
# Needs the Debian packages slurm-wlm and munge. A requeued job is eligible after 6 s (cred_expire), where Slurm's
# default is two minutes, so that a test does not wait. Only a job that asks for it (--requeue) is requeued.
set -euo pipefail

fail() { echo "slurm_test_cluster: $*" >&2; exit 1; }
until_() {  # until_ SECONDS COMMAND...: whether it succeeds in time
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $deadline ] || return 1; sleep 0.1; done
}
free_ports() {  # the first of three that nobody listens at
  local base
  while base=$((21000 + RANDOM % 3000 * 3)); do
    for port in $base $((base + 1)) $((base + 2)); do
      if (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; then continue 2; fi
    done
    echo $base; return
  done
}
gone() { ! kill -0 "$1"; }

start() {
  [ ! -e "$folder/slurm.conf" ] || fail "$folder has a cluster already: stop it first"
  mkdir -p "$folder"/{state,log}
  folder=$(cd "$folder" && pwd) base=$(free_ports) user=$(id -un)
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  # Node names are addresses, so that ranks find each other without a name server.
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$base
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd.%n
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=0
MaxArraySize=3
KillWait=20
CompleteWait=0
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
NodeName=127.0.0.1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((base + 1)) CPUs=4 State=UNKNOWN
NodeName=127.0.0.2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((base + 2)) CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=60
PartitionName=grace Nodes=ALL PriorityTier=1 MaxTime=60 GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=9 MaxTime=60 PreemptMode=OFF
CONF
  export SLURM_CONF=$folder/slurm.conf
  munged --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/log/munged" --seed-file="$folder/munge.seed" 2>>"$folder/log/munged"
  slurmctld
  for node in 127.0.0.1 127.0.0.2; do slurmd -N $node; done
  until_ 60 eval '[ "$(sinfo --noheader --Node --partition=main --states=idle | wc -l)" = 2 ]' ||
    { stop; fail "the nodes did not come up: see $folder/log"; }
}

stop() {
  for name in slurmd.127.0.0.1 slurmd.127.0.0.2 slurmctld munged; do
    pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    until_ 20 gone "$pid" || kill -KILL "$pid"
  done
  rm -f "$folder/slurm.conf"
}

folder=${2:-}
[ -n "$folder" ] && [ $# = 2 ] || fail "say 'start FOLDER' or 'stop FOLDER'"
case $1 in start | stop) "$1" ;; *) fail "say 'start FOLDER' or 'stop FOLDER'" ;; esac
