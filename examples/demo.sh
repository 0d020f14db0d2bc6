#!/bin/bash
# The demo: a nap of its own below .demo/, an app pushed to it over ssh, and its answer. Run it again: it pushes again.
#
# usage: demo.sh [down]
set -euo pipefail
export LC_ALL=C.UTF-8
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
examples=$PWD/examples
demo=$PWD/.demo
nap=$PWD/.venv/bin/nap
app=$demo/hello

# What the caller's shell says of another nap, repository, key or engine is not meant for this one.
unset NAP_STATE GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_SSH GIT_SSH_COMMAND

fail() {
    printf ' !     %s\n' "$@" >&2
    exit 1
}

# nap bounds the length of its state directory's path, which holds unix sockets, and the characters in it. A checkout
# that lies too deep or has other characters gets a link to a directory below /tmp.
make_state() {
    mkdir -p "$demo"
    if [ -L "$demo/nap" ] && [ ! -d "$demo/nap" ]; then rm "$demo/nap"; fi
    if [ ! -e "$demo/nap" ] && [[ ${#demo} -gt 59 || $demo =~ [^A-Za-z0-9/._-] ]]; then
        ln -s "$(mktemp -d /tmp/nap-demo-XXXXXX)" "$demo/nap"
    fi
    mkdir -p "$demo/nap"
}

is_free() { [ -z "$(ss --no-header --listening --tcp --numeric "sport = :$1")" ]; }

# The first port from $1 on that nothing listens on.
free_port() {
    local port=$1
    until is_free "$port"; do port=$((port + 1)); done
    echo "$port"
}

# Every start of a nap that was down has ports that are free; they are kept in its settings for as long as they stay so.
choose_ports() {
    local settings=$demo/nap/settings.toml port
    local mark='# The ports of the demo, chosen by examples/demo.sh'
    if [ -e "$settings" ]; then
        [ "$(head -n 1 "$settings")" = "$mark" ] || return 0
        for port in $(sed -n 's/.*:\([0-9]*\)"$/\1/p' "$settings"); do
            is_free "$port" || break
            port=
        done
        [ -n "$port" ] || return 0
    fi
    cat >"$settings" <<END
$mark
ssh.address = "127.0.0.1:$(free_port 2222)"
registry.address = "127.0.0.1:$(free_port 15000)"
router.http = "127.0.0.1:$(free_port 12080)"
END
}

bring_nap_up() {
    local said
    "$nap" status --state "$demo/nap" >/dev/null 2>&1 || choose_ports
    said=$("$nap" up --state "$demo/nap") || fail 'nap did not come up.'
    # The table of what runs, and what to give `git remote add`.
    echo "$said" | sed '/^$/,$d'
    remote=$(echo "$said" | sed -n 's|.*git remote add nap \(.*\)/APP$|\1/hello|p')
    engine=$("$nap" settings --state "$demo/nap" | awk '$1 == "engine.url" && $2 != "\"\"" { print $2 }')
    export DOCKER_HOST=${engine:-unix:///var/run/docker.sock}
}

# A key for the demo alone, and nothing of the caller's own ssh configuration.
let_demo_in() {
    [ -e "$demo/key" ] || ssh-keygen -q -t ed25519 -N '' -C demo -f "$demo/key"
    local key
    key=$(ssh-keygen -l -f "$demo/key.pub" | cut -d ' ' -f 2)
    "$nap" keys --state "$demo/nap" | grep -qF "$key" || add_key
    echo "nap-demo $(cat "$demo/nap/ssh/host_key.pub")" >"$demo/known_hosts"
    cat >"$demo/ssh_config" <<END
IdentityFile "$demo/key"
IdentitiesOnly yes
HostKeyAlias nap-demo
UserKnownHostsFile "$demo/known_hosts"
StrictHostKeyChecking yes
END
}

add_key() {
    echo '$ nap keys:add demo < key.pub'
    "$nap" keys:add demo --state "$demo/nap" <"$demo/key.pub"
}

# The example as a repository of its own; the next time, its page says when.
commit_something() {
    if [ ! -e "$app/.git" ]; then
        rm -rf "$app.draft"
        cp -R "$examples/hello" "$app.draft"
        git -C "$app.draft" init --quiet --initial-branch=master
        git -C "$app.draft" config user.name 'nap demo'
        git -C "$app.draft" config user.email demo@localhost
        git -C "$app.draft" config commit.gpgsign false
        git -C "$app.draft" config core.sshCommand "ssh -F \"$demo/ssh_config\""
        git -C "$app.draft" remote add nap "$remote"
        git -C "$app.draft" add .
        git -C "$app.draft" commit --quiet --message 'The example'
        mv "$app.draft" "$app"
        return
    fi
    git -C "$app" remote set-url nap "$remote"
    sed -i '/^Pushed again at /d' "$app/www/index.html"
    echo "Pushed again at $(date +%T)." >>"$app/www/index.html"
    git -C "$app" commit --quiet --all --message 'Say when'
}

up() {
    [ -x "$nap" ] || fail 'nap is not installed. Run: make install'
    make_state
    echo '$ nap up'
    bring_nap_up
    "$examples/busybox-image.sh" "$DOCKER_HOST" || fail "The base image nap/busybox could not be made on $DOCKER_HOST."
    let_demo_in
    commit_something
    echo
    echo '$ git push nap master'
    git -C "$app" push nap master 2>&1 | sed --unbuffered 's/ *$//' | tee "$demo/push.log" ||
        fail 'The push failed; the lines above say why.'
    local url
    url=$(sed -n 's/^remote:  *\(http:.*\)/\1/p' "$demo/push.log" | tail -n 1)
    [ -n "$url" ] || fail 'The push printed no address.'
    echo
    echo "\$ curl $url"
    curl --fail --silent --show-error --max-time 10 "$url" || fail "$url does not answer."
    cat <<END

nap stays up. What to try next, from here:
    curl $("$nap" open hello --state "$demo/nap")
    (cd .demo/hello && echo 'Good evening.' > www/index.html && git commit -qam 'A new page' && git push nap master)
    .venv/bin/nap status --state .demo/nap
    .venv/bin/nap settings --state .demo/nap
    make demo-down
END
}

down() {
    if [ ! -d "$demo/nap" ] || [ ! -x "$nap" ]; then
        echo 'There is no demo here. Start it: make demo'
        return
    fi
    local state left containers
    state=$(cd "$demo/nap" && pwd -P)
    engine=$("$nap" settings --state "$state" | awk '$1 == "engine.url" && $2 != "\"\"" { print $2 }')
    "$nap" down --state "$state" || fail 'nap did not go down.'
    # Where its file system is mounted in an unusual way, the engine leaves the mount that it made of its own directory.
    if mountpoint --quiet "$state/engine"; then umount "$state/engine"; fi
    left=$(grep -alF -f <(echo "$state/") /proc/[0-9]*/cmdline 2>/dev/null | cut -d / -f 3 | tr '\n' ' ') || true
    [ -z "$left" ] || fail "These processes of the demo still run: $left"
    # Where the engine is not the demo's own, it still runs, and nap's containers on it end in the state directory's name.
    containers=$(DOCKER_HOST=${engine:-unix:///var/run/docker.sock} docker ps --all --format '{{.Names}}' \
        --filter "name=\.$(printf %s "$state" | sha256sum | cut -c 1-8)\$" 2>/dev/null) || true
    [ -z "$containers" ] || fail "These containers of the demo are still there: $containers"
    [ "$state" = "$demo/nap" ] && state=
    echo "Nothing of the demo runs any more. Its state is kept: \`make demo\` goes on with it; this forgets it:"
    echo "    rm -r .demo${state:+ $state}"
}

case ${1:-up} in
    up) up ;;
    down) down ;;
    *) fail 'usage: demo.sh [down]' ;;
esac
