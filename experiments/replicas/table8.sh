#!/usr/bin/env bash
# Table 8: losses for fine-tuning the mixed model of Table 6, each with the same compute: 1.85 million tokens forward and
# backward. A cached loss pays a second forward, so it gets three quarters of the tokens; prototype has half for each phase.
source "$(dirname "$0")/common.sh"
start=model.path=$RUNS/mixed
train opl opl loss-opl "$start"
train opl mnrl mnrl-2 "$start" data.batch_size=2 steps=860
train opl mnrl mnrl-cached-2 "$start" data.batch_size=2 data.chunk_tokens=2048 steps=645
train opl mnrl mnrl-cached-32 "$start" data.batch_size=32 data.chunk_tokens=8192 steps=40
train opl mnrl mnrl-cached-128 "$start" data.batch_size=128 data.chunk_tokens=8192 steps=12
# prototype loss in two phases: the teacher reads 128 tokens and was trained with MNRL, then MNRL with batches of 2
train opl mnrl teacher "$start" data.batch_size=32 data.document_tokens=128 steps=100
train opl prototype prototype-first "$start" loss.teacher="$RUNS/teacher" loss.teacher_cache="$RUNS/teacher-vectors" steps=215
train opl mnrl prototype model.path="$RUNS/prototype-first" data.batch_size=2 steps=430
arms=(loss-opl mnrl-2 mnrl-cached-2 mnrl-cached-32 mnrl-cached-128 prototype-first prototype)
score table8 "${arms[@]}" teacher
keep table8 "${arms[@]}" teacher
