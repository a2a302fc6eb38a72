#!/bin/sh
# Stands in for `adb` with one device, whose shell is this machine's: what it is asked is carried out and written down.
# As the real one: the words behind `shell` are joined by spaces and read by a shell; what adb itself has to say begins
# with `adb: ` or `error: `.
printf '%s\n' "$*" >> "$STAND_IN_LOG"
if [ "$*" = devices ]; then
  echo "List of devices attached"
  printf '%s' "$STAND_IN_DEVICES" | tr ' ' '\t'
  exit 0
fi
if [ "$1 $2" != "-s SERIAL-1" ]; then
  echo "adb: device '$2' not found" >&2
  exit 1
fi
verb=$3
shift 3
case $verb in
  shell) PATH=$STAND_IN_COMMANDS:$PATH exec sh -c "$*" ;;
  push | pull)
    cp "$1" "$2" || exit 1
    echo "$1: 1 file ${verb}ed."
    ;;
  *) exit 1 ;;
esac
