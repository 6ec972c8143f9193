#!/bin/sh
# One task with the nats CLI alone; NATS_URL names the server. Its words as they come, in another terminal:
#   nats sub --raw 'llorch.tok.*.*'
set -eu
task=$(cat /proc/sys/kernel/random/uuid)
nats req --raw llorch.api.tasks.submit '{
  "task_id": "'"$task"'", "session_id": "'"$task"'", "workload": "completion", "model_ref": "'"${MODEL:-mock:words}"'",
  "engine": "'"${ENGINE:-mock}"'", "ctx": 2048, "priority": "interactive", "max_tokens": 32, "deadline_ms": 60000,
  "prompt": "Write one sentence about rivers."
}'
while :; do
  view=$(nats req --raw llorch.api.tasks.get '{"task_id": "'"$task"'"}')
  case $view in *'"state":"queued"'* | *'"state":"placed"'* | *'"state":"running"'*) sleep 0.2 ;; *) break ;; esac
done
echo "$view"
