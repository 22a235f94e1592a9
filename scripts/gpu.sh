#!/usr/bin/env bash
# What only a GPU can tell, in one command and one JSON: builds the kernels, runs every check on the device, compares split
# models with the CPU's results, looks for races, measures kernels and split models, and compares with other engines.
# Needs CMake, a C++ compiler and nvcc; no Node. On a machine without a GPU: --emulated, where speeds mean nothing.
#
#   scripts/gpu.sh [--emulated] [--phases build,checks,…] [--out DIR] [--build DIR] [--limit SECONDS] [--models LIST]
#                  [--threads N] [--architectures native] [--folder DIR]
#                  [--llama-bench FILE --llama-model GGUF] [--powerinfer FILE --powerinfer-model GGUF] [--peer-budget BYTES]
#
# Phases, each bounded by --limit (default 540 s) and kept apart so that they fit into several short commands; the JSON
# (DIR/results.json) is written anew after each, and keeps what earlier calls found, of other models, too:
#   hardware  what is in the machine            kernels   pi_device_bench: kernels of decoding beside the memory's speed
#   build     everything that follows needs     hybrid    pi_hybrid_bench: split models, one call a model of --models
#   checks    kernels against their slow twins  peers     other engines on GGUF files (bench/gguf.ts makes those), within
#   splits    split models against the CPU                --peer-budget bytes of GPU memory
#   sanitizer compute-sanitizer on a few checks
# --models: shape:type:active, e.g. 7b:q4_0:0.08,13b:f16:0.05. --folder: where they are made, of as much room as the largest.
# Exits with 1 when a phase failed; the JSON says which and why.
set -uo pipefail
cd "$(dirname "$0")/.."

phases=hardware,build,checks,splits,sanitizer,kernels,hybrid,peers
out=${OUT:-gpu-results} build=build/gpu limit=540 threads=$(nproc) architectures=native folder=${TMPDIR:-/tmp}
models=7b:q4_0:0.08,7b:f16:0.08,13b:q4_0:0.08,13b:f16:0.05
device=cuda llama_bench='' llama_model='' powerinfer='' powerinfer_model='' peer_budget=0
usage() {
  echo "gpu.sh: $1" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --emulated) device=emulated models=tiny:f16:0.08,tiny:q4_0:0.08 && shift && continue ;;
    --phases | --out | --build | --limit | --models | --threads | --architectures | --folder) ;;
    --llama-bench | --llama-model | --powerinfer | --powerinfer-model | --peer-budget) ;;
    *) usage "unknown option $1" ;;
  esac
  [ $# -ge 2 ] || usage "$1: expected a value"
  name=${1#--}
  printf -v "${name//-/_}" %s "$2"
  shift 2
done
for number in limit threads peer_budget; do
  [[ ${!number} =~ ^[0-9]+$ ]] || usage "--${number//_/-}: expected a number, got ${!number}"
done
known=,hardware,build,checks,splits,sanitizer,kernels,hybrid,peers,
for phase in ${phases//,/ }; do
  [[ $known == *",$phase,"* ]] || usage "--phases: expected some of ${known//,/ }, got $phase"
done
mkdir -p "$out/phases" || exit 1
export PI_DEVICE=$device PATH=$PATH:/usr/local/cuda/bin LC_ALL=C
programs=$build/Release

# ------------------------------------------------------------------------------------------------------------------ JSON

# A text as a JSON string.
text() { printf '"%s"' "$(tr -d '\000-\010\013-\037' <<<"$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/\t/ /g' | sed -e ':a' -e 'N' -e '$!ba' -e 's/\n/\\n/g')"; }
number() { [[ ${1:-} =~ ^[0-9]+([.][0-9]+)?$ ]] && printf %s "$1" || printf null; }

# A phase's part: its state, how long it took, why, and members of its own.
report() {
  local members=${4:+,$4}
  printf '{"state":"%s","seconds":%s,"reason":%s%s}\n' "$2" "$SECONDS" "$(text "$3")" "$members" >"$out/phases/$1.json"
  local file joined='' failed=false
  for file in hardware build checks splits sanitizer kernels hybrid peers; do
    [ -f "$out/phases/$file.json" ] || continue
    joined+="${joined:+,}\"$file\":$(cat "$out/phases/$file.json")"
    grep -q '^{"state":"failed"' "$out/phases/$file.json" && failed=true
  done
  printf '{"device":"%s","failed":%s,"units":"seconds, bytes, tokens per second; GB/s are 1e9 bytes","phases":{%s}}\n' "$device" "$failed" "$joined" >"$out/results.json.part"
  mv "$out/results.json.part" "$out/results.json"
  echo "$1: $2 after $SECONDS s${3:+: $3}" >&2
  if [ "$2" = failed ]; then status=1; fi
}

# Runs a program within what is left of the phase's limit; its output goes to a log named after the first argument.
run() {
  local log=$out/$1.log left=$((limit - SECONDS))
  shift
  [ "$left" -gt 0 ] || return 124
  timeout -k 10 "$left" "$@" >"$log" 2>&1
}
why() { # of an exit status, and the log
  if [ "$1" = 124 ] || [ "$1" = 137 ]; then echo "stopped at the limit of $limit s"; else echo "exit status $1: $(grep -E 'FAIL|rror' "$out/$2.log" | head -3 || true)"; fi
}
last_json() { grep '^{' "$out/$1.log" | tail -1; }

# ---------------------------------------------------------------------------------------------------------------- phases

hardware() {
  local cpu gpu='' driver='' memory='' toolkit
  cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
  if command -v nvidia-smi >/dev/null; then
    IFS=, read -r gpu driver memory < <(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader,nounits | head -1)
  fi
  toolkit=$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
  report hardware ok '' "\"cpu\":$(text "$cpu"),\"cores\":$(number "$(nproc)"),\"memoryBytes\":$(($(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) * 1024)),\"gpu\":$(text "$gpu"),\"driver\":$(text "${driver# }"),\"gpuMemoryMiB\":$(number "${memory# }"),\"cuda\":$(text "$toolkit"),\"commit\":$(text "$(git rev-parse HEAD 2>/dev/null)")"
}

build() {
  local cuda=ON code
  [ "$device" = emulated ] && cuda=OFF
  run build-configure cmake -S native -B "$build" -DCMAKE_BUILD_TYPE=Release -DPI_ADDON=OFF -DPI_CUDA=$cuda "-DPI_CUDA_ARCHITECTURES=$architectures"
  code=$?
  [ $code = 0 ] || { report build failed "$(why $code build-configure)" && return; }
  local targets=(pi_device_checks pi_hybrid_checks pi_device_bench pi_hybrid_bench pi_emulated)
  [ "$cuda" = ON ] && targets+=(pi_cuda)
  run build cmake --build "$build" -j "$threads" --target "${targets[@]}"
  code=$?
  [ $code = 0 ] && report build ok '' || report build failed "$(why $code build)"
}

# Programs of checks print a line each, "ok name" or "FAIL name: why".
check() {
  local phase=$1 program=$2 code
  run "$phase" "$programs/$program"
  code=$?
  local counts="\"ok\":$(grep -c '^ok ' "$out/$phase.log"),\"failed\":$(grep -c '^FAIL ' "$out/$phase.log")"
  [ $code = 0 ] && report "$phase" ok '' "$counts" || report "$phase" failed "$(why $code "$phase")" "$counts"
}
checks() { check checks pi_device_checks; }
splits() { check splits pi_hybrid_checks; }

# A few checks of each kind: under the sanitizer a kernel takes up to some hundred times as long.
sanitizer() {
  [ "$device" = cuda ] || { report sanitizer skipped "there is no GPU" && return; }
  local tool program=$(command -v compute-sanitizer) code results='' failed=''
  [ -n "$program" ] || { report sanitizer skipped "compute-sanitizer is not installed" && return; }
  for tool in memcheck racecheck synccheck; do
    run "sanitizer-$tool" "$program" --tool $tool --error-exitcode 99 "$programs/pi_device_checks" q4_0 select norm highest quantize merge
    code=$?
    results+="${results:+,}\"$tool\":$code"
    [ $code = 0 ] || failed+="$tool: $(why $code "sanitizer-$tool") "
  done
  run sanitizer-splits "$program" --tool memcheck --error-exitcode 99 "$programs/pi_hybrid_checks" "same bits"
  code=$?
  results+=",\"splits\":$code"
  [ $code = 0 ] || failed+="splits: $(why $code sanitizer-splits)"
  [ -z "$failed" ] && report sanitizer ok '' "$results" || report sanitizer failed "$failed" "$results"
}

kernels() {
  run kernels "$programs/pi_device_bench"
  local code=$?
  [ $code = 0 ] && report kernels ok '' "\"results\":$(last_json kernels)" || report kernels failed "$(why $code kernels)"
}

# What several calls found is kept in a file each: the phase's results, and its state.
report_parts() {
  local file joined='' failed=''
  for file in "$out/phases/$1-"*.part; do
    [ -f "$file" ] || continue
    joined+="${joined:+,}$(cat "$file")"
    if grep -q '"error":' "$file"; then failed+="${failed:+, }$(basename "$file" .part)"; fi
  done
  report "$1" "$([ -z "$failed" ] && echo ok || echo failed)" "${failed:+failed: $failed}" "\"results\":[$joined]"
}

hybrid() {
  local model shape type active log code found few=()
  [ "$device" = emulated ] && few=(--tokens 4 --prompt 8 --threads 2)
  for model in ${models//,/ }; do
    IFS=: read -r shape type active <<<"$model"
    log=hybrid-$shape-$type-$active
    run "$log" "$programs/pi_hybrid_bench" --shape "$shape" --type "$type" --active "$active" --threads "$threads" --folder "$folder" "${few[@]}"
    code=$?
    found=$(last_json "$log")
    [ $code = 0 ] || found="{\"model\":$(text "$model"),\"error\":$(text "$(why $code "$log")"),\"found\":${found:-null}}"
    echo "$found" >"$out/phases/$log.part"
    report_parts hybrid
  done
}

# ----------------------------------------------------------------------------------------------------------------- peers

# Runs a peer and prints the most device memory, in bytes, that was in use meanwhile above what was before.
with_memory() {
  local log=$1 before now most=0 job
  shift
  used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1; }
  before=$(used)
  run "$log" "$@" &
  job=$!
  while kill -0 $job 2>/dev/null; do
    now=$(used)
    [ $((now - before)) -gt "$most" ] && most=$((now - before))
    sleep 0.2
  done
  wait $job
  peer_code=$?
  peer_bytes=$((most * 1048576))
}

# Members of a peer's result: name, file of the model, its log, whether it printed a speed.
peer() {
  local members="\"name\":\"$1\",\"model\":$(text "${2##*/}"),\"budgetBytes\":$peer_budget,\"gpuBytes\":$peer_bytes,\"tokensPerSecond\":$(number "$4")${5:-}"
  [ -n "$4" ] || members+=",\"error\":$(text "$(why $peer_code "$3")")"
  echo "{$members}" >"$out/phases/peers-$1-${2##*/}-$peer_budget.part"
}

# llama.cpp with as many layers on the GPU as the budget holds: down from what the file's size promises until it is kept.
llama() {
  local layers=99 speed='' log
  [ "$peer_budget" -gt 0 ] && layers=$((peer_budget * 42 / $(stat -Lc %s "$llama_model") + 1))
  while :; do
    log=peers-llama-$layers
    with_memory $log "$llama_bench" -m "$llama_model" -ngl $layers -t "$threads" -p 0 -n 64 -r 3 -o json
    speed=$(sed -n 's/.*"avg_ts": *\([0-9.]*\).*/\1/p' "$out/$log.log" | tail -1)
    [ "$peer_budget" = 0 ] || { [ $peer_code = 0 ] && [ $peer_bytes -le "$peer_budget" ]; } || [ $peer_code = 124 ] || [ $layers = 0 ] && break
    layers=$((layers - 1)) speed=''
  done
  peer llama.cpp "$llama_model" $log "$speed" ",\"gpuLayers\":$layers"
}

# PowerInfer through its main, with random tokens, for its own bench decodes one over and over.
power() {
  local budget=() speed
  [ "$peer_budget" -gt 0 ] && budget=(--vram-budget "$(awk "BEGIN { print $peer_budget / 1073741824 }")")
  with_memory peers-powerinfer "$powerinfer" -m "$powerinfer_model" -t "$threads" -c 1024 -n 65 --ignore-eos --temp 1e6 --top-k 40 --top-p 1 --min-p 0 --seed 1 -p "a b c d" "${budget[@]}"
  speed=$(sed -n 's/.*print_timings: *eval time =.* \([0-9.]*\) tokens per second.*/\1/p' "$out/peers-powerinfer.log" | tail -1)
  peer PowerInfer "$powerinfer_model" peers-powerinfer "$speed"
}

peers() {
  peer_code=0 peer_bytes=0
  [ "$device" = cuda ] || { report peers skipped "there is no GPU" && return; }
  [ -n "$llama_bench$powerinfer" ] || { report peers skipped "neither --llama-bench nor --powerinfer was given" && return; }
  if [ -n "$llama_bench" ]; then llama; fi
  if [ -n "$powerinfer" ]; then power; fi
  report_parts peers
}

status=0
for phase in ${phases//,/ }; do
  SECONDS=0
  case $phase in
    checks | sanitizer) program=pi_device_checks ;;
    splits) program=pi_hybrid_checks ;;
    kernels) program=pi_device_bench ;;
    hybrid) program=pi_hybrid_bench ;;
    *) program='' ;;
  esac
  if [ -n "$program" ] && [ ! -x "$programs/$program" ]; then
    report "$phase" failed "$programs/$program is not there: --phases build"
  else
    "$phase"
  fi
done
echo "$out/results.json" >&2
exit $status
