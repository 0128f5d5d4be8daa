; Copies files from the directory that is given beside the spec, as a user of its own.
;
;   obuild run examples/context.sexp examples
((from debootstrap:bookworm)
 (workdir /home/builder/examples)
 (run
  (shell "useradd --uid 1000 --home-dir /home/builder builder && chown -R builder: /home/builder"))
 (user (uid 1000) (gid 1000))
 ; One item and a name for it; then everything else, into the working directory.
 (copy (src hello.sexp) (dst first.sexp))
 (copy (src .) (dst ./) (exclude .git hello.sexp))
 (run (shell "test $(stat -c %U first.sexp) = builder && wc -l *.sexp")))
