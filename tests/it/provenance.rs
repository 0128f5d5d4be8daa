// SPDX-License-Identifier: Apache-2.0
//! Bills of materials, provenance, signatures.

use crate::harness::World;
use serde_json::Value;

/// A step that leaves databases of dpkg, apk and opam behind.
const DATABASES: &str = r#"(run (shell "mkdir -p /etc /var/lib/dpkg /lib/apk/db /root/.opam/5.2/.opam-switch
printf 'ID=debian\nVERSION_ID=12\n' > /etc/os-release
printf 'Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nArchitecture: amd64\n' > /var/lib/dpkg/status
printf 'P:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n' > /lib/apk/db/installed
echo 'installed: [\"dune.3.16.0\"]' > /root/.opam/5.2/.opam-switch/switch-state"))"#;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("a document")
}

#[test]
fn a_bill_of_materials_is_the_same_of_every_store() {
    let mut first: Option<(Value, Value)> = None;
    for world in World::all() {
        let id = world.build(DATABASES);
        let bill = |format: &str| {
            let mut command = world.command(&["sbom", &id[..10], "--format", format]);
            let output = command.env("SOURCE_DATE_EPOCH", "1700000000").output();
            let output = output.expect("the binary runs");
            assert!(output.status.success(), "{output:?}");
            json(&String::from_utf8_lossy(&output.stdout))
        };
        let both = (bill("spdx"), bill("cyclonedx"));
        let urls: Vec<&str> = both.1["components"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|component| component["purl"].as_str())
            .collect();
        assert_eq!(
            urls,
            [
                "pkg:apk/debian/musl@1.2.4-r2?arch=x86_64&distro=debian-12",
                "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12",
                "pkg:opam/dune@3.16.0",
            ]
        );
        let first = first.get_or_insert_with(|| both.clone());
        assert_eq!(*first, both);

        // Without the variable the time is the build's, so that it is the same again.
        world.ok(&["sbom", &id, "-o", "bill.json"]);
        let written = fs_err::read_to_string(world.path("bill.json")).unwrap();
        assert_eq!(written.trim_end(), world.ok(&["sbom", &id]));
        assert_ne!(json(&written)["creationInfo"], first.0["creationInfo"]);
        world.assert_clean();
    }
}

#[test]
fn an_image_has_a_bill_of_materials_too() {
    let Some(world) = World::new() else { return };
    let id = world.build(DATABASES);
    world.ok(&["export", &id, "-t", "app:1", "-o", "type=oci,dest=layout"]);
    let bill = json(&world.ok(&["sbom", "oci:layout:1"]));
    let text = bill.to_string();
    assert!(text.contains("pkg:deb/debian/libc6@2.36-9"), "{text}");
    assert_eq!(bill["name"], "oci:layout:1");
    assert_eq!(world.run(&["sbom", "deadbeef"]).status, 2);
    assert_eq!(world.run(&["sbom", "oci:nosuch:1"]).status, 2);
    world.assert_clean();
}

/// A spec with a nested build, a copy from the context and a secret.
fn nested(world: &World) {
    world.write("file", "content");
    let from = crate::harness::from();
    world.write(
        "spec.sexp",
        format!(
            "((build dev ({from} (shell /bin/sh -c) (run (shell \"echo built > /made\"))))
              {from} (shell /bin/sh -c) (copy (src file) (dst /file)) (copy (from (build dev)) (src /made) (dst /made))
              (run (secrets (token (target /token))) (shell \"cat /token > /dev/null\")))"
        ),
    );
    world.write("token", "very secret");
}

fn read(world: &World, name: &str) -> Value {
    json(&fs_err::read_to_string(world.path(name)).unwrap())
}

#[test]
fn provenance_says_what_a_result_was_made_of() {
    let Some(world) = World::new() else { return };
    nested(&world);
    let arguments = [
        "run",
        "spec.sexp",
        "--secret",
        "token:token",
        "--provenance",
    ];
    let id = world.ok(&[&arguments[..], &["one.json"]].concat());
    let one = read(&world, "one.json");
    assert_eq!(one["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(one["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(one["subject"][0]["name"], id.as_str());
    let inspected = json(&world.ok(&["inspect", &id]));
    assert_eq!(
        one["subject"][0]["digest"]["obuildTree"],
        inspected["digest"]
    );
    assert!(inspected["digest"].is_string());
    let definition = &one["predicate"]["buildDefinition"];
    assert_eq!(
        definition["externalParameters"]["spec"]["name"],
        "spec.sexp"
    );
    let dependencies = definition["resolvedDependencies"].as_array().unwrap();
    assert_eq!(dependencies.len(), 2, "{dependencies:#?}");
    let base = &dependencies[0]["digest"]["sha256"];
    let context = &dependencies[1];
    assert_eq!(
        (&context["name"], &context["annotations"]["src"][0]),
        (&"context".into(), &"file".into())
    );
    let steps = definition["internalParameters"]["steps"]
        .as_array()
        .unwrap();
    assert_eq!(steps.len(), 5, "the base is there once: {steps:#?}");
    assert_eq!(steps[4]["id"], id.as_str());
    assert_eq!(steps[4]["from"], steps[3]["id"]);
    assert_eq!(steps[3]["reads"], steps[1]["id"]);
    let text = one.to_string();
    assert!(
        !text.contains("very secret") && text.contains("token"),
        "{text}"
    );

    // The base is the archive that sha256sum knows.
    let archive = crate::harness::base().unwrap();
    let sum = std::process::Command::new("sha256sum")
        .arg(archive)
        .output()
        .unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout);
    assert_eq!(base.as_str(), sum.split_whitespace().next());

    // All of it is the same again but for the times, though nothing was run; a changed file shows.
    let without_times = |document: &Value| {
        let mut document = document.clone();
        document["predicate"]["runDetails"]["metadata"] = Value::Null;
        document
    };
    world.ok(&[&arguments[..], &["two.json"]].concat());
    assert_eq!(
        without_times(&read(&world, "two.json")),
        without_times(&one)
    );
    world.write("file", "other content");
    world.ok(&[&arguments[..], &["three.json"]].concat());
    let three = read(&world, "three.json");
    let changed = &three["predicate"]["buildDefinition"]["resolvedDependencies"];
    assert_eq!(changed[0], dependencies[0]);
    assert_ne!(changed[1]["digest"], context["digest"]);
    world.assert_clean();
}

#[test]
fn signed_provenance_verifies_with_its_key_alone() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.ok(&["key", "generate"]), "obuild.key\nobuild.pub");
    let ran = world.run(&["key", "generate"]);
    assert_eq!(ran.status, 2, "a key is never written over: {ran:#?}");
    world.ok(&["key", "generate", "-o", "other"]);
    let mode = fs_err::metadata(world.path("obuild.key"))
        .unwrap()
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );

    world.write(
        "config.toml",
        "rsync-mode = \"hardlink\"\nbuilder-id = \"https://ci.example.org/pool\"\n",
    );
    world.spec("(run (shell \"echo signed > /x\"))");
    let arguments = [
        "run",
        "spec.sexp",
        "--provenance",
        "signed.json",
        "--sign-key",
    ];
    let ran = world.run(&[&arguments[..], &["obuild.pub"]].concat());
    assert_eq!(ran.status, 2, "that is no private key: {ran:#?}");
    world.ok(&[&arguments[..], &["obuild.key"]].concat());
    let statement = json(&world.ok(&[
        "verify-signature",
        "--file",
        "signed.json",
        "--key",
        "obuild.pub",
    ]));
    let builder = &statement["predicate"]["runDetails"]["builder"];
    assert_eq!(builder["id"], "https://ci.example.org/pool");
    let ran = world.run(&[
        "verify-signature",
        "--file",
        "signed.json",
        "--key",
        "other.pub",
    ]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:#?}");
    let mut envelope = read(&world, "signed.json");
    envelope["payloadType"] = "text/plain".into();
    world.write("changed.json", envelope.to_string());
    let ran = world.run(&[
        "verify-signature",
        "--file",
        "changed.json",
        "--key",
        "obuild.pub",
    ]);
    assert_eq!(ran.status, 1, "{ran:#?}");

    // Another program takes the keys, and signs so that we take it.
    world.write("message", "message");
    let openssl = |arguments: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        command.args(arguments).current_dir(world.directory.path());
        command.output()
    };
    let Ok(produced) = openssl(&["pkey", "-in", "obuild.key", "-pubout"]) else {
        obuild_fixtures::skip("openssl is not installed");
        return;
    };
    let public = fs_err::read_to_string(world.path("obuild.pub")).unwrap();
    assert_eq!(String::from_utf8_lossy(&produced.stdout), public);
    let produced = openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "openssl.key",
    ]);
    assert!(produced.unwrap().status.success());
    assert!(
        openssl(&[
            "pkey",
            "-in",
            "openssl.key",
            "-pubout",
            "-out",
            "openssl.pub"
        ])
        .unwrap()
        .status
        .success()
    );
    world.ok(&[&arguments[..], &["openssl.key"]].concat());
    world.ok(&[
        "verify-signature",
        "--file",
        "signed.json",
        "--key",
        "openssl.pub",
    ]);
}

#[test]
fn a_bill_lists_what_dpkg_lists() {
    let Some(world) = World::new() else { return };
    let Some(debian) = obuild_fixtures::debian() else {
        return;
    };
    world.write("spec.sexp", format!("((from tar:{}))", debian.display()));
    let id = world.ok(&["run", "spec.sexp"]);
    let format = "-f=${Package} ${Version}\\n";
    let listed = world.ok(&["shell", &id, "--", "dpkg-query", "-W", format]);
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    let bill = json(&world.ok(&["sbom", &id, "--format", "cyclonedx"]));
    let mut packages: Vec<String> = bill["components"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|component| component["type"] == "library")
        .map(|package| {
            let field = |name: &str| package[name].as_str().unwrap().to_owned();
            format!("{} {}", field("name"), field("version"))
        })
        .collect();
    packages.sort_unstable();
    assert_eq!(packages, listed);
    assert!(packages.len() > 50, "a Debian has more");
}

/// Fetches something of a repository from the registry, as any other program would.
fn fetch(world: &World, host: &str, path: &str) -> Vec<u8> {
    let mut command = std::process::Command::new("curl");
    command.args([
        "-sSf",
        "-H",
        "Accept: application/vnd.oci.image.manifest.v1+json",
    ]);
    let output = command
        .arg(format!("http://{host}/v2/{path}"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{path}: {output:?} {}",
        world.store
    );
    output.stdout
}

#[test]
fn pushed_images_are_signed_as_cosign_does_it() {
    let Some(world) = World::new() else { return };
    let Some(host) = obuild_fixtures::registry(obuild_fixtures::Registry::Plain) else {
        return;
    };
    let repository = format!("signed-{}", std::process::id());
    let image = format!("{host}/{repository}:1");
    world.ok(&["key", "generate"]);
    world.ok(&["key", "generate", "-o", "other"]);
    world.spec(DATABASES);
    let push = [
        "run",
        "spec.sexp",
        "-t",
        &image,
        "--push",
        "--metadata-file",
        "metadata.json",
    ];
    let id = world.ok(&push);
    let digest = read(&world, "metadata.json")["containerimage.digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let verify = |key: &str| world.run(&["verify-signature", &image, "--key", key]);
    let ran = verify("obuild.pub");
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (1, ""),
        "nobody has signed: {ran:#?}"
    );

    let signed = [
        "--sign-key",
        "obuild.key",
        "--attest",
        "type=provenance",
        "--attest",
        "type=sbom",
    ];
    world.ok(&[&push[..], &signed, &["--provenance", "provenance.json"]].concat());
    let ran = verify("obuild.pub");
    assert_eq!(ran.status, 0, "{ran:#?}");
    let verified = json(&ran.stdout);
    assert_eq!(verified["digest"], digest.as_str());
    let hex = digest.strip_prefix("sha256:").unwrap();
    let statements = verified["statements"].as_array().unwrap();
    let kinds: Vec<&Value> = statements.iter().map(|it| &it["predicateType"]).collect();
    assert_eq!(
        kinds,
        [
            "https://slsa.dev/provenance/v1",
            "https://spdx.dev/Document"
        ]
    );
    for statement in statements {
        assert_eq!(statement["subject"][0]["digest"]["sha256"], hex);
    }
    let spdx = statements[1]["predicate"].to_string();
    assert!(spdx.contains("pkg:opam/dune@3.16.0"), "{spdx}");
    // In the file there is the same statement, about the image, signed too.
    let file = json(&world.ok(&[
        "verify-signature",
        "--file",
        "provenance.json",
        "--key",
        "obuild.pub",
    ]));
    assert_eq!(file, statements[0]);
    let ran = verify("other.pub");
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:#?}");

    // What cosign's specification asks for.
    let tag = |suffix: &str| format!("{repository}/manifests/sha256-{hex}.{suffix}");
    let manifest = json(&String::from_utf8(fetch(&world, &host, &tag("sig"))).unwrap());
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(manifest["subject"]["digest"], digest.as_str());
    let layer = &manifest["layers"][0];
    assert_eq!(
        layer["mediaType"],
        "application/vnd.dev.cosign.simplesigning.v1+json"
    );
    let payload = fetch(
        &world,
        &host,
        &format!("{repository}/blobs/{}", layer["digest"].as_str().unwrap()),
    );
    let document = json(&String::from_utf8(payload.clone()).unwrap());
    assert_eq!(
        document["critical"]["image"]["docker-manifest-digest"],
        digest.as_str()
    );
    let statements = json(&String::from_utf8(fetch(&world, &host, &tag("att"))).unwrap());
    let layer_of_statement = &statements["layers"][0];
    assert_eq!(
        layer_of_statement["mediaType"],
        "application/vnd.dsse.envelope.v1+json"
    );
    assert_eq!(
        layer_of_statement["annotations"]["predicateType"],
        "https://slsa.dev/provenance/v1"
    );
    // OpenSSL takes the signature, as any program would that knows the format.
    let signature = layer["annotations"]["dev.cosignproject.cosign/signature"]
        .as_str()
        .unwrap();
    world.write("payload", &payload);
    world.write("signature.b64", format!("{signature}\n"));
    let script = "base64 -d signature.b64 > signature && openssl dgst -sha256 -verify obuild.pub -signature signature payload";
    let mut shell = std::process::Command::new("sh");
    let told = shell
        .args(["-c", script])
        .current_dir(world.directory.path())
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");

    // Again nothing is added; another key's signature and statement go beside it.
    world.ok(&[&push[..], &signed].concat());
    world.ok(&["sbom", &id, "--format", "cyclonedx", "-o", "bill.json"]);
    world.ok(&[
        "sign",
        &image,
        "--key",
        "other.key",
        "--attest",
        "bill.json",
    ]);
    let count = |suffix: &str| {
        let manifest = json(&String::from_utf8(fetch(&world, &host, &tag(suffix))).unwrap());
        manifest["layers"].as_array().unwrap().len()
    };
    assert_eq!((count("sig"), count("att")), (2, 3));
    let theirs = verify("other.pub");
    assert_eq!(theirs.status, 0, "{theirs:#?}");
    let theirs = json(&theirs.stdout);
    assert_eq!(theirs["statements"].as_array().unwrap().len(), 1);
    assert_eq!(
        theirs["statements"][0]["predicateType"],
        "https://cyclonedx.org/bom"
    );

    // What cannot be done is said before anything is.
    for arguments in [
        &["run", "spec.sexp", "--sign-key", "obuild.key"][..],
        &[
            "push",
            &id,
            &image,
            "--sign-key",
            "obuild.key",
            "--attest",
            "type=provenance",
        ],
        &["push", &id, &image, "--attest", "type=sbom"],
        &[
            "push",
            &id,
            &image,
            "--sign-key",
            "obuild.key",
            "--attest",
            "type=nothing",
        ],
    ] {
        let ran = world.run(arguments);
        assert_eq!(ran.status, 2, "{arguments:?}: {ran:#?}");
    }
    world.assert_clean();
}
