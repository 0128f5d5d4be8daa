; The smallest useful build: a Debian base, one file, one command.
;
;   obuild run examples/hello.sexp
((from debootstrap:bookworm)
 (comment "Every operation is a line of the log")
 (env GREETING hello)
 (run (shell "echo \"$GREETING from $(. /etc/os-release && echo $PRETTY_NAME)\" > /greeting"))
 (run (shell "cat /greeting")))
