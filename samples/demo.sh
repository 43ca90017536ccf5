#!/bin/sh
# Train a small model while saving every 20th step, measure the trajectory, then measure a LLaMA nobody here trained.
set -eu
ckpt=$1
out=demo
llama=../shared/data/models/stories260k/hf_bf16_sharded
rm -rf "$out" && mkdir "$out"

echo "== 1. train: one attention layer on Markov data, a checkpoint every 20 steps and more at the start"
"$ckpt" train transformer --task markov --save every:20,log:80 --out "$out/markov"

echo "== 2. measure: effective rank of every matrix along the trajectory"
"$ckpt" analyze "$out/markov" --plugin rank --output "$out/markov.h5"
"$ckpt" show "$out/markov.h5" --what rank.effective_rank

echo "== 3. the same measurement on a third party's language model"
if [ ! -d "$llama" ]; then
    llama=$out/llama
    "$(dirname "$ckpt")/python" samples/tiny_llama.py "$llama"
fi
"$ckpt" analyze "$llama" --plugin rank --output "$out/llama.h5"
"$ckpt" show "$out/llama.h5" --what rank.effective_rank

echo "== 4. a page to look at"
"$ckpt" report "$out/markov.h5" -o "$out/report.html"

echo "== results: $out/markov.h5 and $out/llama.h5 (HDF5: h5py, xarray, MATLAB, Julia)"
