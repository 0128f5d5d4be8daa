; Reads a secret while a command runs. Its value reaches neither the result, nor the log, nor the step's id.
;
;   printf 'let me in' > /tmp/token
;   obuild run --secret id=token,src=/tmp/token examples/secrets.sexp
((from debootstrap:bookworm)
 (run
  (secrets (token (target /run/secrets/token)))
  (shell "sha256sum < /run/secrets/token | cut -c1-8 > /fingerprint"))
 (run (shell "cat /fingerprint && ! test -s /run/secrets/token")))
