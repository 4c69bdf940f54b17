# Functions of the jobs' shells; common.smk sources this file.

# Write standard input to the log "$1", line by line; PREFDAG_TEE copies it to standard output, for a cluster's own logs.
# Snakemake deletes the log before each attempt, so that of a failed one, which writes no manifest, has a second name:
# log.1.txt, and log.2.txt of the failed attempt before.
# On a full disk the last lines, which say so, still find room: that of a file that is reserved for them.
# A signal reaches all processes of a job at once: this one ignores it and waits for the stage to save its state.
record() {
    trap '' INT TERM
    local name="${1%.txt}" folder="${1%/*}" line
    : > "$1" || true
    head -c 16384 /dev/zero > "$name.reserve" 2> /dev/null || true
    while IFS= read -r line || [ -n "$line" ]; do
        if [ -n "${PREFDAG_TEE:-}" ]; then printf '%s\n' "$line"; fi
        if ! printf '%s\n' "$line" >> "$1" 2> /dev/null; then
            : > "$name.reserve"
            printf '%s\n' "$line" >> "$1" || true
        fi
    done
    if [ ! "$folder/manifest.json" -nt "$name.reserve" ]; then
        if [ -e "$name.1.txt" ]; then mv -f "$name.1.txt" "$name.2.txt"; fi
        ln -f "$1" "$name.1.txt" 2> /dev/null || cp "$1" "$name.1.txt" || true
    fi
    rm -f "$name.reserve"
}
