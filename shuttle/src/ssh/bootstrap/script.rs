//! The script for the remote /bin/sh.

/// The script. It uses POSIX utilities, and mktemp, head -c, xz, gzip and sha256sum if they exist.
///
/// The script passes through the account's login shell, whichever that is, in single quotes. So it is one line without
/// single quotes, `!` or a newline. It accepts a directory only after it has run a program there.
///
/// Nothing may read after a tool has failed. On a full disk some versions of head read on to the end, which the client
/// would not send, and both would wait for ever. So the script tests head first, and uses dd only if `head -c` is not
/// supported. For the same reason it writes the upload to a file first, and unpacks it from there.
pub(super) const SCRIPT: &str = concat!(
    r#"f() { echo "shuttle-failed $1"; exit 1; }; "#,
    r#"i=; read -r i 2>/dev/null </proc/sys/kernel/random/boot_id; j=$(readlink /proc/self/ns/net 2>/dev/null); "#,
    r#"c=raw; for z in xz gzip; do command -v $z >/dev/null 2>&1 && c=$z && break; done; "#,
    r#"echo; echo "shuttle-hello 1 $c $(uname -sm) $i $j"; read -r c t n a b || exit 1; umask 077; h=; "#,
    r#"trap "exit 1" 1 2 13 15; trap "rm -rf \"\$h\"" 0; "#,
    r#"for d in "${TMPDIR:-/tmp}" "$XDG_RUNTIME_DIR" "$HOME" /var/tmp /dev/shm; do "#,
    r#"case "$d" in /*) ;; *) continue;; esac; "#,
    r#"h=$(mktemp -d "$d/shuttle.XXXXXXXX" 2>/dev/null) || { h="$d/shuttle.$$"; mkdir "$h" 2>/dev/null || h=; }; "#,
    r#"test -n "$h" || continue; "#,
    r#"{ echo "exit 0" >"$h/t" && chmod 700 "$h/t" && "$h/t"; } 2>/dev/null && break; "#,
    r#"rm -rf "$h"; h=; done; test -n "$h" || f "nowhere"; "#,
    r#"p="$h/agent"; z="$p"; test "$c" = raw || z="$h/z"; "#,
    r#"if echo x | head -c 1 >/dev/null 2>&1; then head -c "$t" >"$z" 2>/dev/null; else l=0; "#,
    r#"while test "$l" -lt "$t" && dd bs=65536 count=1 >>"$z" 2>/dev/null; do k=$(wc -c <"$z"); "#,
    r#"test "$k" -gt "$l" || break; l=$k; done; fi; "#,
    r#"test "$c" = raw || "$c" -dc <"$z" >"$p" 2>/dev/null || f "damaged"; "#,
    r#"l=$(wc -c <"$p"); test "$l" -eq "$n" || f "damaged"; "#,
    r#"s=$(sha256sum <"$p" 2>/dev/null) || s=$(cksum <"$p" 2>/dev/null) || f "unchecked"; "#,
    r#"case "$s" in "$a "*|"$b "*) ;; *) f "damaged";; esac; "#,
    r#"chmod 700 "$p"; "$p" --check 2>/dev/null || f "unfit"; echo "shuttle-start"; exec "$p" "$h""#,
);
