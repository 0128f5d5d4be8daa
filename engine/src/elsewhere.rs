// SPDX-License-Identifier: Apache-2.0
//! What a command sees around it, other than usual: for builds that are to show whether their results depend on it.
//!
//! Only what neither the spec nor the base says: a variable that they set stays as it is. Identities of steps stay what they are, since a sound
//! step gives the same all the same.

use bstr::BString;
use obuild_sandboxes::{Command, Network, Variation};
use std::time::Duration;

/// Another host name than every other step has.
const HOST_NAME: &str = "elsewhere";

/// Variables that steps do not have, and logins on other machines do. The time zone is in the form that needs no file: tzset(3).
const VARIABLES: [(&str, &str); 3] = [
    ("USER", "somebody"),
    ("LOGNAME", "somebody"),
    ("TZ", "GMT-14"),
];

/// How much later the clock says that it is: another year, month, day, hour, minute and second, and another day of the week.
const AHEAD: Duration = Duration::from_secs(400 * 86_400 + 7 * 3600 + 13 * 60 + 17);

/// The id of the process before the command's own, which is usually the second.
const LAST_PROCESS: u32 = 4711;

/// Gives a command other surroundings, as far as the sandbox of this name can.
pub(crate) fn vary(command: &mut Command, sandbox: &str) {
    HOST_NAME.clone_into(&mut command.hostname);
    for (name, value) in VARIABLES {
        if !command.env.iter().any(|(known, _)| known == name) {
            command
                .env
                .push((BString::from(name), BString::from(value)));
        }
    }
    if matches!(sandbox, "native" | "user") {
        command.variation = Some(Variation {
            // Certificates and lists of packages are valid for a time, and no longer a year later.
            clock_ahead: match command.network {
                Network::None => AHEAD,
                Network::Host => Duration::ZERO,
            },
            last_process: LAST_PROCESS,
        });
    }
}
