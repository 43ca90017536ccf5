#!/bin/sh
# Draw the figures of README.md and docs/analyzers.md from runs made here: sh docs/figures.sh .venv/bin/ckpt
set -eu
ckpt=$1
images=$(dirname "$0")/images
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quietly() { "$ckpt" "$@" -q; }
plot() { name=$1; shift; "$ckpt" plot "$@" --dpi 120 -o "$images/$name.png"; }

quietly train transformer --task markov --save every:20,log:80 --out "$work/markov"
quietly analyze "$work/markov" -p rank -p drift -p stages -p attention -p heavytail \
    --set heavytail.relative=true -o "$work/markov.h5"
quietly analyze "$work/markov" -p flatness --steps log:24 -o "$work/flat.h5"
plot markov "$work/markov.h5" --what rank.effective_rank --log-x
plot rank "$work/markov.h5" --what rank.singular_values --log-x
plot drift "$work/markov.h5" --what drift.speed --log-x
plot stages "$work/markov.h5" --what stages.relative_distance --log-x
plot attention "$work/markov.h5" --what attention.mass --lines query_token
plot heavytail "$work/markov.h5" --what heavytail.log_spectral_norm --log-x
plot flatness "$work/flat.h5" --what flatness.eigenvalue --log-x

quietly train mlp --task regression --preset stages --set activation=tanh --steps 4000 --save log:60,every:100 \
    --out "$work/mlp"
quietly analyze "$work/mlp" -p condensation --set condensation.order_max=128 -o "$work/mlp.h5"
plot condensation "$work/mlp.h5" --what condensation.cosine --matrices layers.0.linear --at 0 --at 20 --at 100 --at 400
quietly analyze "$work/mlp" -p landscape --set landscape.run="$work/mlp" -o "$work/plane.h5"
plot landscape "$work/plane.h5" --what landscape.loss_map
plot orientation "$work/mlp.h5" --what condensation.amplitude --at 0 --at 500 --at 1000 --at 4000

for std in 0.001 0.01 0.1; do
    for seed in 0 1 2; do
        run=std=${std}_seed=$seed
        quietly train mlp --task regression --preset mini --set std=$std --seed $seed --steps 3000 --save every:50 --out "$work/$run"
        quietly analyze "$work/$run" -p rank -o "$work/$run.h5"
    done
done
plot sweep "$work"/std=*.h5 --what rank.effective_rank --matrices 'layers.[01].linear'

quietly train transformer --task anchor --preset mini --save log:60 --out "$work/anchor"
quietly analyze "$work/anchor" -p answers -p flow --steps log:24 -o "$work/anchor.h5"
plot answers "$work/anchor.h5" --what answers.accuracy --log-x
plot flow "$work/anchor.h5" --what flow.loss_effect

quietly train transformer --task two_hop --preset mini --steps 300 --save every:30 --out "$work/hop"
quietly analyze "$work/hop" -p alignment --set alignment.a=split=0 --set alignment.b=split=3 \
    --set alignment.pair=bridge -o "$work/hop.h5"
plot alignment "$work/hop.h5" --what alignment.cosine

quietly train mamba --task inverse --preset mini --steps 60 --save every:10 --out "$work/mamba"
quietly analyze "$work/mamba" -p asymmetry -o "$work/mamba.h5"
plot asymmetry "$work/mamba.h5" --what asymmetry.window_asymmetry
