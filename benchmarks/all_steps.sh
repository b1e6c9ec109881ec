#!/usr/bin/env bash
# A step of every preset beside PyTorch, first steps, and growth: what the README and docs/evidence.md take their figures from.
#
#     benchmarks/all_steps.sh [-o FOLDER] [-r ROUNDS] [tiny] [stories15m] [stories110m] [gpt2] [qwen3-0.6b] [first] [growth] [batches] [masked]
#
# Without names all but `batches` and `masked`, one after the other: some 20 minutes on two processors with nothing else running (a busy machine is said
# in each report, as `load`). Reports go to FOLDER (benchmarks/results). Rounds are few where a step is long, ROUNDS where they are given; of stories110m and larger ones only
# those variants of PyTorch's are measured that can be its best on a processor with bf16 instructions, and one whose losses are compared. Of gpt2 and
# qwen3-0.6b max-autotune is left out too, which takes minutes to compile and was slower with stories110m; of qwen3-0.6b, of which memory holds one
# variant at a time, all of torch.compile's and the parts of its step, which need two more processes.
# growth: the sequence from 128 to 4,096 and the batch from 1 to 16. batches: the second of them alone.
# masked: stories15m with the instructions of AVX2 alone, ours, PyTorch's and those of the peak alike.
set -uo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results rounds=
while getopts o:r: option; do
    case $option in
        o) out=$OPTARG ;;
        r) rounds=$OPTARG ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
torchane=${TORCHANE:-.venv/bin/torchane}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
ours=(--variant twin)
"$python" -c 'import sys; from torchane import native; sys.exit(not native.has_fast())' && ours+=(--variant twin-fast)
eager=(--variant eager-fp32 --variant eager-bf16)

step() { "$torchane" bench train-step --out "$out" --preset "$@"; }
growth() { "$python" benchmarks/growth.py --variants "twin-fast,twin,eager-bf16" "${@:2}" | tee "$out/$1.jsonl"; }

for name in "${@:-tiny stories15m stories110m gpt2 qwen3-0.6b first growth}"; do for part in $name; do
    begin=$SECONDS
    echo "== $part"
    case $part in
        tiny) step tiny --parts --rounds "${rounds:-4}" --steps 4 ;;
        stories15m) step stories15m --parts --batch-size 4 --seq-len 256 --rounds "${rounds:-3}" --steps 2 ;;
        stories110m) step stories110m --parts --batch-size 4 --seq-len 256 --warmup 2 --rounds "${rounds:-5}" --steps 1 "${ours[@]}" "${eager[@]}" --variant inductor-bf16 --variant inductor-max-bf16 ;;
        gpt2) step gpt2 --parts --warmup 2 --rounds "${rounds:-5}" --steps 1 "${ours[@]}" "${eager[@]}" --variant inductor-bf16 ;;
        qwen3-0.6b) step qwen3-0.6b --batch-size 1 --seq-len 128 --warmup 2 --rounds "${rounds:-2}" --steps 1 "${ours[@]}" "${eager[@]}" ;;
        masked)
            TORCHANE_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
                "$torchane" bench train-step --parts --out "$out/train-step-stories15m-4x256-avx2.json" --preset stories15m --batch-size 4 --seq-len 256 \
                --rounds "${rounds:-3}" --steps 2 --variant twin --variant eager-fp32 --variant inductor-fp32 --variant inductor-max-fp32 ;;
        first)
            presets=(--preset tiny --preset stories15m --preset stories110m --preset gpt2 --preset qwen3-0.6b)
            TORCHANE_CACHE=$(mktemp -d) "$torchane" bench first-step --json "${presets[@]}" | tail -n 1 > "$out/first-step.json" ;;
        growth) growth growth --seq-lens 128,512,1024,2048,4096 --batch-sizes 4,16 ;;
        batches) growth batches --seq-lens 128 --batch-sizes 4,16 ;;
        *) echo "there is no $part; see the head of $0"; exit 2 ;;
    esac || echo "FAILED: $part"
    echo "   $part: $((SECONDS - begin)) s"
done; done
