#!/usr/bin/env bash
# From a fresh clone to a model that answers: installs what is missing, builds, starts a
# router, a prefill node and a decode node on this machine, asks, shows where it ran, stops.
#   deploy/quickstart.sh                       with the model of this repository
#   deploy/quickstart.sh --model=DIR           with a Hugging Face model directory of yours
#   deploy/quickstart.sh --prompt=TEXT         ask something else
#   deploy/quickstart.sh --keep                leave it running; says how to talk to it and stop it
# Safe to run twice, also at the same time: every port is a free one.
set -euo pipefail
here="$PWD"
cd "$(dirname "$(readlink -f "$0")")/.."

model=models/baton-tiny
model_given=no
prompt="The baton is"
keep=no
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }
fail() { echo "quickstart: $*" >&2; exit 1; }

while (($# > 0)); do
  case "$1" in
    --model=*) model="${1#*=}" model_given=yes ;;
    --model) (($# > 1)) || fail "--model needs a directory"; model="$2" model_given=yes; shift ;;
    --prompt=*) prompt="${1#*=}" ;;
    --prompt) (($# > 1)) || fail "--prompt needs a text"; prompt="$2"; shift ;;
    --keep) keep=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart: $1: no such flag" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

if [[ "$model_given" == yes ]]; then
  [[ "$model" == /* ]] || model="$here/$model"
fi
[[ -f "$model/config.json" ]] ||
  fail "$model has no config.json; --model takes a Hugging Face model directory (config.json, tokenizer.json, *.safetensors)"

step() { printf '\n== %s\n' "$*"; }

up_pid=
work=$(mktemp -d "${TMPDIR:-/tmp}/baton-quickstart.XXXXXX")
cleanup() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [[ -n "$up_pid" ]]; then
    kill -TERM "$up_pid" 2> /dev/null || true
    wait "$up_pid" 2> /dev/null || true
  fi
  [[ "$keep" == kept ]] || rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'echo >&2; echo "quickstart: stopped" >&2; exit 130' INT
trap 'exit 143' TERM HUP

step "1/4 packages"
deploy/install_deps.sh build
echo "all there"

step "2/4 build (the first time takes some minutes)"
build_log="$work/build.log"
build=(bazel build //router //prefill_node //decode_node //client:baton)
if [[ -t 2 ]]; then
  "${build[@]}" --show_progress || fail "the build failed; what Bazel says is above"
elif ! "${build[@]}" > "$build_log" 2>&1; then
  tail -n 40 "$build_log" >&2
  fail "the build failed; what Bazel said last is above"
fi
bin=$(bazel info bazel-bin 2> /dev/null)
for binary in router/router prefill_node/prefill_node decode_node/decode_node client/baton; do
  [[ -x "$bin/$binary" ]] || fail "$bin/$binary is missing after the build; try: bazel build //${binary%/*}"
done
baton="$bin/client/baton"
# Bazel's link reads better than where it leads; it may be missing, or another build's.
[[ ! bazel-bin/client/baton -ef "$baton" ]] || baton="$PWD/bazel-bin/client/baton"
echo "$bin/{router/router,prefill_node/prefill_node,decode_node/decode_node,client/baton}"

step "3/4 start: one router, one prefill node, one decode node"
up_log="$work/up.log"
router=
start_up() {
  # Its own session with --keep: it must outlive this shell and its terminal.
  local run=()
  [[ "$keep" == yes ]] && run=(setsid)
  "${run[@]}" "$baton" up --model="$model" --prefill=1 --decode=1 --listen=127.0.0.1:0 > "$up_log" 2>&1 < /dev/null &
  up_pid=$!
  local start=$SECONDS
  until grep -q '^Talk to it' "$up_log"; do
    if ! kill -0 "$up_pid" 2> /dev/null; then
      wait "$up_pid" || true
      up_pid=
      return 1
    fi
    [[ ! -t 2 ]] || printf '\r\033[K  %d s  loading %s' $((SECONDS - start)) "$model" >&2
    sleep 0.2
  done
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
  router=$(sed -n 's/^  router  *\([^ ]*\)$/\1/p' "$up_log")
}
# A free port may be taken by somebody else before it is bound: then once more.
if ! start_up && ! { grep -qi 'address.*in use\|could not.*bind\|cannot listen' "$up_log" && start_up; }; then
  cat "$up_log" >&2
  fail "the processes did not come up; what they said is above"
fi
# While the nodes load, the router says that it cannot reach them yet: that is no news here.
sed -e '/^ts=/d' -e '/^Talk to it/,$d' "$up_log"

step "4/4 ask"
echo "\$ baton generate --router=$router --prompt=\"$prompt\" --max-tokens=64 --seed=1"
"$baton" generate --router="$router" --prompt="$prompt" --max-tokens=64 --seed=1 2>&1 ||
  { cat "$up_log" >&2; fail "the prompt was not answered; the processes said what is above"; }
# A base model has no chat template: then there is no chat to show.
if grep -qs '"chat_template"' "$model/tokenizer_config.json" || [[ -f "$model/chat_template.jinja" ]]; then
  question="What is a relay race?"
  [[ "$model_given" == no ]] || question="Who are you?"
  echo
  echo "\$ baton chat --router=$router --message=\"$question\" --max-tokens=64 --seed=1"
  "$baton" chat --router="$router" --message="$question" --max-tokens=64 --seed=1 2>&1 ||
    { cat "$up_log" >&2; fail "the question was not answered; the processes said what is above"; }
fi

if [[ "$keep" == yes ]]; then
  keep=kept
  cat << TEXT

It keeps running. Talk to it:
  $baton generate --router=$router --prompt="..."
  $baton chat --router=$router
  $baton status --router=$router
What its processes say: $up_log
Stop it:
  kill $up_pid
TEXT
  up_pid=
else
  step "stop"
  kill -TERM "$up_pid"
  wait "$up_pid" || fail "the processes did not stop cleanly: $(cat "$up_log")"
  up_pid=
  echo "all stopped"
fi
