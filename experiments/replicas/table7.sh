#!/usr/bin/env bash
# Table 7 and Figure 4: at eight times the length, a warm start from the mixed model of Table 6 against a cold one. Every
# way of extending, the cold start with the same steps, and a cold start with the compute of both stages together.
source "$(dirname "$0")/common.sh"
for positions in replicate interpolate; do
    for decay in keep stretch; do
        start=$RUNS/start-$positions-$decay
        [ -d "$start" ] || "$PYTHON" -m m2bert.train.warm_start --model "$RUNS/mixed" --max-length 8192 \
            --positions $positions --decay $decay --output "$start"
        train mlm mlm-8k "warm-$positions-$decay" model.path="$start"
    done
done
train mlm mlm-8k cold
train mlm mlm-8k cold-same-compute steps=225
keep table7 warm-{replicate,interpolate}-{keep,stretch} cold cold-same-compute
