; A C program: compiled and tested where there is a compiler, then copied to a system without one.
;
;   obuild run examples/c-project/spec.sexp examples/c-project/src

((build dev
  ((from debootstrap:bookworm)
   (comment "A compiler, from the package mirror that this host uses")
   (env DEBIAN_FRONTEND noninteractive)
   (run
    (cache (apt-archives (target /var/cache/apt/archives)))
    (network host)
    (shell "apt-get -q update && apt-get -q install -y --no-install-recommends gcc libc6-dev make"))
   (workdir /src)
   (copy (src .) (dst /src/))
   (run (shell make))
   (run (shell "make check"))))
 (from debootstrap:bookworm)
 (copy (from (build dev)) (src /src/hello) (dst /usr/local/bin/))
 (user (uid 1000) (gid 1000))
 (run (shell "hello obuild")))
