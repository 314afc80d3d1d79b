#!/usr/bin/env bash
# Table 6: short, long or mixed pretraining examples, the same tokens for each, then the same fine-tuning.
source "$(dirname "$0")/common.sh"
train mlm mlm-short short
train mlm mlm-long long
train mlm mlm mixed
# the same held-out examples for all three: one step of no learning, on the mixture
for arm in short long mixed; do train mlm mlm "held-out-$arm" model.path="$RUNS/$arm" steps=1 optim.lr=0.0; done
for arm in short long mixed; do train opl opl "opl-$arm" model.path="$RUNS/$arm"; done
train opl opl opl-none tokenizer.path=runs/replicas/tokenizer   # no pretraining at all
score table6 opl-short opl-long opl-mixed opl-none
keep table6 short long mixed held-out-short held-out-long held-out-mixed opl-short opl-long opl-mixed opl-none
