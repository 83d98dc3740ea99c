#!/usr/bin/env bash
# A real Slurm cluster on this machine alone, to try launcher=slurm and to test it: munge, one slurmctld and two nodes.
#
#   scripts/slurm_local.sh start            bring it up, wait until both nodes take jobs; does nothing when it is up
#   eval "$(scripts/slurm_local.sh env)"    let this shell's sbatch, squeue and mlplatform talk to it
#   scripts/slurm_local.sh status | stop
#
# As root. What is missing of slurm-wlm and munge is installed by apt-get. Everything listens on the loopback, and all
# that is written stands in $SLURM_LOCAL_DIR, but for the nodes' names in /etc/hosts, which `stop` takes out again.
#
# Partitions: main (default); spare, whose jobs one of `urgent` preempts: they get SIGTERM and are requeued after 15
# seconds; brief, which refuses jobs of more than two minutes when they are submitted.
set -euo pipefail

home=${SLURM_LOCAL_DIR:-/tmp/slurm_local}
port=${SLURM_LOCAL_PORT:-27100}   # of slurmctld; the nodes' come after it
nodes=(mlplatform-node1 mlplatform-node2)
export SLURM_CONF=$home/slurm.conf

fail() { echo "slurm_local.sh: $*" >&2; exit 1; }

runs() { [[ -s $home/$1.pid ]] && kill -0 "$(< "$home/$1.pid")" 2> /dev/null; }

# Without slurm.conf the commands ask the DNS for one, which takes a minute where there is none.
idle() { runs slurmctld && [[ $(sinfo --noheader --Node --partition=main --states=idle,mixed,allocated,completing 2> /dev/null | wc -l) == "${#nodes[@]}" ]]; }

install() {
  export PATH=$PATH:/usr/sbin
  command -v slurmctld slurmd munged sbatch > /dev/null && return
  [[ $EUID == 0 ]] && command -v apt-get > /dev/null || fail "slurm-wlm and munge are missing, and only root can install them"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge; } \
    > /dev/null 2>&1 || fail "apt-get can't install slurm-wlm and munge"
}

configure() {
  local host number=0 gpu
  host=$(hostname -s)
  mkdir -p "$home/state"
  chmod 755 "$home"
  [[ -s $home/munge.key ]] || (umask 077 && head -c 256 /dev/urandom > "$home/munge.key")
  cat > "$SLURM_CONF" << CONF
ClusterName=alone
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
# So long a requeued job waits (two minutes by itself; less than 5 seconds are not allowed).
AuthInfo=socket=$home/munge.socket,cred_expire=5
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool.%n
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/%n.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/%n.log
# Neither cgroups nor a database: jobs are found by their process tree, and finished ones are remembered by slurmctld.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MinJobAge=3600
# The nodes are as large as this file says, whatever the machine is.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
SchedulerParameters=defer,batch_sched_delay=0,sched_interval=2,bf_interval=2
CONF
  for node in "${nodes[@]}"; do
    number=$((number + 1))
    # MASTER_ADDR is a node's name, so it has to resolve.
    grep -qs "127.0.0.1 $node\$" /etc/hosts || echo "127.0.0.1 $node" >> /etc/hosts
    echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + number)) CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
  done >> "$SLURM_CONF"
  cat >> "$SLURM_CONF" << CONF
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 PriorityTier=5 PreemptMode=OFF
PartitionName=spare Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=9 PreemptMode=OFF
PartitionName=brief Nodes=ALL MaxTime=2 DefaultTime=1 PriorityTier=5 PreemptMode=OFF
CONF
  # An empty file stands for a GPU: Slurm counts it and gives it out, and shows no device to the job.
  : > "$home/gres.conf"
  for gpu in gpu0 gpu1; do : > "$home/$gpu"; echo "Name=gpu File=$home/$gpu" >> "$home/gres.conf"; done
  # Newer slurmd (23.11 and later) wants to be told that there are no cgroups.
  case $(slurmd -V) in *\ 2[0-2].* | *\ 23.02*) ;; *) echo "CgroupPlugin=disabled" > "$home/cgroup.conf" ;; esac
}

start() {
  mkdir -p "$home"
  exec 9> "$home.lock"
  flock 9   # two that start at once: the second finds it up
  install
  if idle; then return; fi
  configure
  runs munged || munged --force --key-file="$home/munge.key" --socket="$home/munge.socket" --pid-file="$home/munged.pid" \
    --log-file="$home/munged.log" --seed-file="$home/munged.seed" 9>&-
  runs slurmctld || slurmctld 9>&-
  for node in "${nodes[@]}"; do runs "$node" || slurmd -N "$node" 9>&-; done
  for ((tries = 0; tries < 200; tries++)); do
    if idle; then return; fi
    sleep 0.1
  done
  tail -n 5 "$home"/*.log >&2
  fail "the nodes did not come up in 20 seconds; the logs are in $home"
}

stop() {
  local daemon pids=() hosts
  [[ -d $home ]] || return 0
  if runs slurmctld; then timeout 10 scancel --full --user=root 2> /dev/null || true; fi
  for daemon in "${nodes[@]}" slurmctld munged; do
    if runs "$daemon"; then pids+=("$(< "$home/$daemon.pid")"); kill "${pids[-1]}"; fi
  done
  for ((tries = 0; tries < 100; tries++)); do
    [[ ${#pids[@]} != 0 ]] && kill -0 "${pids[@]}" 2> /dev/null || break
    sleep 0.1
  done
  rm -rf "$home" "$home.lock"
  hosts=$(grep -v ' mlplatform-node[12]$' /etc/hosts || true)
  echo "$hosts" > /etc/hosts   # a file of a container can be written and not be replaced
}

case ${1:-} in
  start) start ;;
  env) printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" ;;
  status) [[ -s $SLURM_CONF ]] || fail "it is not up: scripts/slurm_local.sh start"; sinfo --Node --long; squeue ;;
  stop) stop ;;
  *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
