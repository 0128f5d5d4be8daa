// SPDX-License-Identifier: Apache-2.0
//! The status page of `obuild archive serve` in a real browser: headless Chromium, light and dark, narrow and wide.

use crate::harness::wait_for;
use crate::serving::{World, curl};
use obuild_fixtures::skip;
use std::path::Path;
use std::process::Command;

/// What a page of hard content looks like: long names, long reasons, hostile ones.
const STATE: &str = r#"{"format": 1, "repository": "https://example.org/a-very-long-name-of-an-organisation/opam-repository.git",
 "revision": "master", "commit": "0123456789012345678901234567890123456789", "index": "", "table": null, "packages": 18793, "archives": 11495,
 "recheck": false, "unnamed": {}, "skipped": [["packages/a/LONG", "<b>a link that leads out</b>"]],
 "failures": {"sha256=abababababababababababababababababababababababababababababababab": {"kind": "mismatch",
   "attempts": [{"url": "https://example.org/LONG.tbz", "reason": "md5 is LONG, not LONG"}],
   "packages": ["packages/b/LONG.1/opam"], "since": 1700000000, "tried": 1700000000, "times": 3, "next": 1700000000}},
 "syncs": [{"started": 1700000000, "milliseconds": 1234, "from": null, "to": "0123456789012345678901234567890123456789",
   "packages_read": 18793, "packages_removed": 2, "fetched": 3, "fetched_bytes": 4000000, "failed": 5}]}"#;

/// Measures what a reader would see, and says what is wrong in the title. It is the test's: the page itself has no scripts.
const MEASURE: &str = r"<script>
for (const details of document.querySelectorAll('details')) details.open = true;
const wrong = [];
const wide = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > wide) wrong.push('the page is wider than the window');
const numbers = text => text.match(/[\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
const ground = element => { for (; element; element = element.parentElement) {
  const colour = numbers(getComputedStyle(element).backgroundColor);
  if (colour.length === 3 || colour[3] > 0) return light(colour);
} return 1; };
for (const element of document.querySelectorAll('h1, h2, p, li, td, th, small, code, pre, a, span, summary')) {
  const style = getComputedStyle(element), box = element.getBoundingClientRect(), name = element.outerHTML.slice(0, 60);
  if (box.right > wide + 1 && !element.closest('.scroll')) wrong.push('cut off: ' + name);
  const [one, two] = [light(numbers(style.color)), ground(element)].sort((a, b) => b - a);
  if ((one + 0.05) / (two + 0.05) < 4.5) wrong.push('hard to read: ' + name);
  if (parseFloat(style.fontSize) < (/^H/.test(element.tagName) ? 17 : 10)) wrong.push('small: ' + name);
}
const paper = ground(document.body) > 0.5 ? 'light' : 'dark';
document.title = 'seen ' + paper + ' ' + wide + ' ' + (wrong.join('; ') || 'all is well');
</script></body>";

fn chromium(world: &World, dark: bool, width: u32, url: &str) -> String {
    let output = Command::new("chromium-headless-shell")
        .args(["--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .arg(format!(
            "--user-data-dir={}",
            world.path("chromium").display()
        ))
        // Blink's own numbers: 0 is dark, 1 is light.
        .arg(format!(
            "--blink-settings=preferredColorScheme={}",
            i32::from(!dark)
        ))
        .arg(format!("--window-size={width},1500"))
        .args(["--timeout=20000", "--dump-dom", url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_page_is_readable_in_a_browser() {
    let program = "chromium-headless-shell";
    if Command::new(program).arg("--version").output().is_err() {
        skip(&format!("needs {program}"));
        return;
    }
    let Some(world) = World::new() else { return };
    let state = STATE.replace("LONG", &"a-name-that-does-not-end-".repeat(6));
    world.write("served/.obuild/state.json", state.as_bytes());
    let server = world.serve(&["--update", "echo oh; exit 1", "--poll", "1h"]);
    let mut page = String::new();
    wait_for("the state and the update", || {
        page = curl(&[&server.url("/status")]).1;
        page.contains("Missing archives") && page.contains("exit status: 1")
    });
    // As it is served, with its policy against scripts and all.
    let dom = chromium(&world, false, 1280, &server.url("/status"));
    for title in [
        "<h1>opam archive</h1>",
        "Missing archives",
        "Last syncs",
        "Updates",
        "Server",
    ] {
        assert!(dom.contains(title), "{title}: {dom}");
    }
    world.write("page.html", page.replace("</body>", MEASURE).as_bytes());
    let url = format!("file://{}", Path::new(&world.path("page.html")).display());
    for dark in [false, true] {
        for width in [390, 1280] {
            let dom = chromium(&world, dark, width, &url);
            let title = dom.split("<title>").nth(1).unwrap();
            let title = title.split("</title>").next().unwrap();
            let scheme = if dark { "dark" } else { "light" };
            assert_eq!(title, format!("seen {scheme} {width} all is well"));
        }
    }
}
