// SPDX-License-Identifier: Apache-2.0
//! Specs and the Dockerfiles that they become.

use super::*;

fn convert(source: &str, buildkit: bool, escape: Escape) -> Dockerfile {
    let spec = Spec::parse(source.as_bytes()).expect("a sound spec");
    to_dockerfile(&spec, buildkit, escape)
}

const EVERYTHING: &str = r#"
((build Dev ((from debian) (run (shell "make"))))
 (build "0 b" ((build Dev ((from dev) (copy (src a) (dst /b)))) (from scratch) (copy (from (build Dev)) (src b) (dst /))))
 (from docker://debian:12)
 (comment "two\nlines")
 (env GREETING "say \"hi\" for $5 \\ ok")
 (copy (src a b/c) (dst ./))
 (workdir src)
 (user (uid 1000) (gid 100))
 (run (cache (c (target /cache) (buildkit_options ((sharing locked))))) (network host)
      (secrets (key (target /run/key))) (shell "echo $GREETING"))
 (shell /bin/sh -ec)
 (run (shell "set -e\nmake\n"))
 (copy (from (build Dev)) (src /out/x) (dst /y) (exclude .git *.o))
 (copy (src "my file" $x) (dst "/a b/")))
"#;

#[test]
fn for_buildkit() {
    let dockerfile = convert(EVERYTHING, true, Escape::Unix);
    assert_eq!(dockerfile.warnings, []);
    assert_eq!(
        dockerfile.text,
        r#"# syntax=docker/dockerfile:1
FROM debian AS dev-2
WORKDIR /
USER 0:0
SHELL ["/usr/bin/env", "bash", "-c"]
RUN --network=none make

FROM dev AS dev-3
COPY a /b

FROM scratch AS build-0-b
COPY --from=dev-3 b /b

FROM debian:12
# two
# lines
ENV GREETING="say \"hi\" for \$5 \\ ok"
WORKDIR /
COPY a ./a
COPY b/c ./c
WORKDIR /src
USER 1000:100
SHELL ["/usr/bin/env", "bash", "-c"]
RUN --mount=type=secret,id=key,target=/run/key,uid=1000,gid=100 --mount=type=cache,id=c,target=/cache,uid=1000,gid=100,sharing=locked echo $GREETING
SHELL ["/bin/sh", "-ec"]
RUN --network=none <<'EOF'
set -e
make
EOF
COPY --chown=1000:100 --from=dev-2 --exclude=**/.git --exclude=**/[*].o out/x /y
COPY --chown=1000:100 ["my file", "/a b/my file"]
COPY --chown=1000:100 ["\\$x", "/a b/\\$x"]
"#
    );
}

#[test]
fn for_the_old_builder() {
    let dockerfile = convert(EVERYTHING, false, Escape::Unix);
    let main = dockerfile
        .text
        .split("FROM debian:12\n")
        .nth(1)
        .expect("the last stage");
    assert_eq!(
        main,
        r#"# two
# lines
ENV GREETING="say \"hi\" for \$5 \\ ok"
WORKDIR /
COPY a ./a
COPY b/c ./c
WORKDIR /src
USER 1000:100
# obuild: RUN has no secrets such as key without BuildKit
SHELL ["/usr/bin/env", "bash", "-c"]
RUN echo $GREETING
SHELL ["/bin/sh", "-ec"]
RUN ["/bin/sh", "-ec", "set -e\nmake\n"]
# obuild: COPY cannot exclude .git *.o without BuildKit
COPY --chown=1000:100 --from=dev-2 out/x /y
COPY --chown=1000:100 ["my file", "/a b/my file"]
COPY --chown=1000:100 ["\\$x", "/a b/\\$x"]
"#
    );
    let messages: Vec<_> = dockerfile
        .warnings
        .iter()
        .map(|warning| &*warning.message)
        .collect();
    assert_eq!(
        messages,
        [
            "RUN has no secrets such as key without BuildKit",
            "COPY cannot exclude .git *.o without BuildKit"
        ]
    );
}

/// Returns what follows `RUN ` for one command.
fn run(command: &str, buildkit: bool) -> String {
    let mut text = String::from("((from x) (shell /bin/sh -c) (run (network host) (shell ");
    crate::sexp::push_quoted(&mut text, command.as_bytes());
    text.push_str(")))");
    let text = convert(&text, buildkit, Escape::Unix).text;
    text.split_once("RUN ").expect("a RUN").1.to_owned()
}

#[test]
fn commands_arrive_as_they_are() {
    for (command, old, new) in [
        ("make -j $(nproc) # all", "make -j $(nproc) # all\n", ""),
        ("", "[\"/bin/sh\", \"-c\", \"\"]\n", ""),
        (" x", "[\"/bin/sh\", \"-c\", \" x\"]\n", ""),
        ("[ -e x ]", "[\"/bin/sh\", \"-c\", \"[ -e x ]\"]\n", ""),
        ("--version", "[\"/bin/sh\", \"-c\", \"--version\"]\n", ""),
        ("echo a\\", "[\"/bin/sh\", \"-c\", \"echo a\\\\\"]\n", ""),
        ("cat <<< x", "[\"/bin/sh\", \"-c\", \"cat <<< x\"]\n", ""),
        ("a\r\nb", "[\"/bin/sh\", \"-c\", \"a\\r\\nb\"]\n", ""),
        (
            "#!/bin/x\ny",
            "[\"/bin/sh\", \"-c\", \"#!/bin/x\\ny\"]\n",
            "",
        ),
        ("a\nb\\", "[\"/bin/sh\", \"-c\", \"a\\nb\\\\\"]\n", ""),
        (
            "a 'x\n  y'\nEOF\n\n",
            "[\"/bin/sh\", \"-c\", \"a 'x\\n  y'\\nEOF\\n\\n\"]\n",
            "<<'EOF_'\na 'x\n  y'\nEOF\n\nEOF_\n",
        ),
        (
            "cat <<X\na\nX",
            "[\"/bin/sh\", \"-c\", \"cat <<X\\na\\nX\"]\n",
            "<<'EOF'\ncat <<X\na\nX\nEOF\n",
        ),
    ] {
        assert_eq!(run(command, false), old, "{command:?}");
        assert_eq!(
            run(command, true),
            if new.is_empty() { old } else { new },
            "{command:?}"
        );
    }
}

#[test]
fn without_a_shell_the_command_is_the_program() {
    let text = convert(
        "((from x) (shell) (run (shell /bin/true)))",
        false,
        Escape::Unix,
    )
    .text;
    assert!(text.ends_with("USER 0:0\nRUN [\"/bin/true\"]\n"), "{text}");
}

#[test]
fn variables_that_env_cannot_hold_reach_the_commands() {
    let source =
        r#"((from x) (env A "1\n2") (env "odd name" v) (run (shell a)) (env A 3) (run (shell b)))"#;
    let dockerfile = convert(source, true, Escape::Unix);
    assert_eq!(
        dockerfile.text,
        r#"FROM x
# obuild: ENV cannot hold A: its value is given to each RUN
# obuild: ENV cannot hold "odd name": its value is given to each RUN
WORKDIR /
USER 0:0
RUN --network=none ["/usr/bin/env", "A=1\n2", "odd name=v", "/usr/bin/env", "bash", "-c", "a"]
ENV A="3"
RUN --network=none ["/usr/bin/env", "odd name=v", "/usr/bin/env", "bash", "-c", "b"]
"#
    );
    assert_eq!(dockerfile.warnings.len(), 2);
}

#[test]
fn for_windows() {
    let source = r#"((from x) (shell cmd /S /C) (user (name ContainerAdministrator)) (env P "C:\\a `b`")
        (workdir "/c d") (copy (src .) (dst "")) (run (shell "dir c:\\")) (run (shell "dir `")))"#;
    assert_eq!(
        convert(source, false, Escape::Windows).text,
        r#"# escape=`
FROM x
SHELL ["cmd", "/S", "/C"]
USER ContainerAdministrator
ENV P="C:\a ``b``"
WORKDIR "/c d"
COPY . ./
RUN dir c:\
RUN ["cmd", "/S", "/C", "dir `"]
"#
    );
}

#[test]
fn mounts_are_quoted_and_keep_to_numbers() {
    let source = r#"((from debootstrap:bookworm) (user (name bob))
        (run (cache ("a,b c" (target "/x \"$y\""))) (network host) (shell x)) (copy (src -x "<<y" "[z]") (dst /d/)))"#;
    assert_eq!(
        convert(source, true, Escape::Unix).text,
        r#"# obuild: FROM knows no base like debootstrap:bookworm
FROM debootstrap:bookworm
USER bob
WORKDIR /
# obuild: a cache cannot be owned by bob, only by a number
SHELL ["/usr/bin/env", "bash", "-c"]
RUN --mount=type=cache,\"id=a,b\ c\",\"target=/x\ \\\"\"\\$y\\\"\"\" x
COPY --chown=bob ./-x /d/-x
COPY --chown=bob ["./<<y", "/d/<<y"]
COPY --chown=bob ["[[]z]", "/d/[z]"]
"#
    );
}
