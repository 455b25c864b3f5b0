#!/usr/bin/env bash
# Makes Debian's rustc able to build for x86_64-unknown-linux-musl, for machines whose rustup cannot fetch
# that target: installs Debian's packages of the compiler, its source, musl and an unwinder, builds the
# standard library from them and puts it where that compiler looks. Takes two minutes, once.
#
# Then RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc cargo build --target x86_64-unknown-linux-musl works,
# with a CARGO_TARGET_DIR of its own, as another compiler's results are of no use.
set -euo pipefail

target=x86_64-unknown-linux-musl
export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc

main() {
    install_packages
    local folder
    folder=$("$RUSTC" --print sysroot)/lib/rustlib/$target/lib
    if [[ $("$RUSTC" -vV) == "$(cat "$folder/built-by" 2>/dev/null)" ]]; then
        echo "the standard library for $target is there"
        return
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    build_std
    collect "$work/lib"
    as_root mkdir -p "$(dirname "$folder")"
    as_root rm -rf "$folder"
    as_root cp -r "$work/lib" "$folder"
    as_root chmod -R a+rX "$folder"
}

install_packages() {
    local packages=(rustc-web rust-web-src musl-dev libunwind-14-dev)
    dpkg-query --show "${packages[@]}" gcc binutils >/dev/null 2>&1 && return
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${packages[@]}" gcc binutils >/dev/null
}

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"; else sudo -n "$@"; fi
}

# By an empty package that has the standard library built along with it.
build_std() {
    mkdir -p "$work/empty/src"
    : >"$work/empty/src/lib.rs"
    printf '[package]\nname = "empty"\nedition = "2021"\n' >"$work/empty/Cargo.toml"
    # panic_abort serves programs that abort only if it is itself compiled so
    cat >"$work/rustc" <<'WRAPPER'
#!/bin/sh
case " $* " in
*" --crate-name panic_abort "*) exec "$@" -Cpanic=abort ;;
esac
exec "$@"
WRAPPER
    chmod +x "$work/rustc"
    # RUSTC_BOOTSTRAP: building the standard library is not a stable option; bitcode is for lto
    (
        cd "$work/empty"
        RUSTFLAGS=-Cembed-bitcode=yes RUSTC_WRAPPER=$work/rustc RUSTC_BOOTSTRAP=1 \
            CARGO_TARGET_DIR=$work/target \
            cargo build --quiet --release -Zbuild-std=std,panic_abort,test --target "$target"
    )
}

# collect FOLDER: the libraries, musl's start files and libc, gcc's start files and the unwinder
collect() {
    local to=$1 file
    mkdir -p "$to/self-contained"
    for file in "$work/target/$target/release/deps"/lib*.rlib; do
        [[ $file == */libempty-* ]] || cp "$file" "$to/"
    done
    for file in crt1.o rcrt1.o Scrt1.o crti.o crtn.o libc.a; do
        cp "/usr/lib/x86_64-linux-musl/$file" "$to/self-contained/"
    done
    for file in crtbegin.o crtbeginS.o crtbeginT.o crtend.o crtendS.o; do
        cp "$(gcc -print-file-name="$file")" "$to/self-contained/"
    done
    # gcc's own unwinder needs glibc. This one is made for glibc in one symbol, which only messages
    # before an abort use
    objcopy --redefine-sym __fprintf_chk=abort /usr/lib/llvm-14/lib/libunwind.a \
        "$to/self-contained/libunwind.a"
    "$RUSTC" -vV >"$to/built-by"
}

main
