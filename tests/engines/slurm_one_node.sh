#!/bin/bash
# Slurm on this machine alone, in a folder of its own: no systemd, no cgroups, nothing under /etc.
# It needs the packages slurm-wlm and munge (install), and afterwards no privileges.
# usage: slurm_one_node.sh install | up DIR | down DIR      then: export SLURM_CONF=DIR/slurm.conf
set -euo pipefail
what=${1:?install|up|down}; PATH=$PATH:/usr/sbin:/sbin

install_packages() {
  command -v slurmctld slurmd munged srun >/dev/null && return
  command -v apt-get >/dev/null || { echo "Slurm is not installed, and there is no apt-get: install slurm-wlm and munge" >&2; exit 3; }
  [ "$(id -u)" = 0 ] || { echo "Slurm is not installed: apt-get install slurm-wlm munge, as root" >&2; exit 3; }
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends slurm-wlm munge
}

down() {
  for name in slurmd slurmctld munged; do
    pid=$(cat "$DIR/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || continue 2; sleep 0.25; done
    kill -9 "$pid" 2>/dev/null || true
  done
}

configure() {
  host=$(hostname -s); me=$(id -un)
  memory=$(( $(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 / 2 ))
  # Preempted jobs have 20 s, and are requeued; a requeued one is eligible again after cred_expire.
  cat > "$DIR/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmctldDebug=debug
SlurmdLogFile=$DIR/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=8
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=low  Nodes=$host Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=$host State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

up() {
  [ "$(getconf _NPROCESSORS_ONLN)" -ge 2 ] || { echo "the tests want two cores" >&2; exit 3; }
  mkdir -p "$DIR/state" "$DIR/spool"; chmod 755 "$DIR"
  export SLURM_CONF="$DIR/slurm.conf"
  configure
  (umask 077; head -c 1024 /dev/urandom > "$DIR/munge.key")
  # munged minds who else may write to the folders above it.
  munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" --seed-file="$DIR/munge.seed" \
    --pid-file="$DIR/munged.pid" --log-file="$DIR/munged.log"
  munge --socket="$DIR/munge.socket" -n | unmunge --socket="$DIR/munge.socket" >/dev/null
  slurmctld -c -i; slurmd
  for _ in $(seq 80); do
    state=$(sinfo -h -p low -o %T 2>/dev/null || true); [ "$state" = idle ] && return; sleep 0.25
  done
  echo "the node is '$state', not idle: $DIR/slurmctld.log, $DIR/slurmd.log" >&2; tail -n 20 "$DIR"/slurm*.log >&2; exit 1
}

[ "$what" = install ] && { install_packages; exit; }
DIR=$(realpath -m "${2:?a folder of its own}")
case $what in up) trap '[ $? = 0 ] || down' EXIT; up;; down) down;; *) echo "unknown: $what" >&2; exit 2;; esac
