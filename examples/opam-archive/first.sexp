; The opam archive as a build: `opam admin cache` and `opam admin index` run in a sandbox, and what they make becomes an
; image. This is the first one; update.sexp goes on from it.
;
;   examples/opam-archive/package.sh /tmp/opam-archive first
;   cp examples/opam-archive/*.sexp /tmp/opam-archive
;   obuild run /tmp/opam-archive/first.sexp /tmp/opam-archive -o type=oci,dest=/tmp/opam-archive/image
((from debootstrap:bookworm)
 (env DEBIAN_FRONTEND noninteractive)
 (env HOME /root)
 (env OPAMROOTISOK 1)
 (run
  (cache (apt-archives (target /var/cache/apt/archives)))
  (network host)
  (shell "apt-get -q update && apt-get -q install -y --no-install-recommends ca-certificates curl opam rsync"))
 ; With packages whose archives are on the network, only the repository.
 (copy (src repository) (dst /srv/repository))
 (copy (src sources) (dst /srv/sources))
 (workdir /srv/repository)
 (run (network host) (shell "opam admin cache ../cache && opam admin index"))
 (run (shell "find ../cache -type f | grep -q . && tar -tzf index.tar.gz | grep -q opam")))
